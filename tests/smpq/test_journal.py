import sqlite3

import pytest

from calib.errors import UserError
from smpq.journal import Journal


def test_what_was_written_is_there_after_a_kill(tmp_path):
    path = tmp_path / "journal.sqlite"
    killed = Journal(path)  # never closed
    killed.add("one", "a=w8a8", -0.1)
    killed.add("one", "a=fp32", 0.0)
    killed.add("two", "a=w8a8", -7.0)
    resumed = Journal(path)
    assert resumed.read("one") == {"a=w8a8": -0.1, "a=fp32": 0.0}
    assert resumed.read("two") == {"a=w8a8": -7.0}
    assert resumed.read("three") == {}
    killed.close()
    resumed.close()


def test_a_value_comes_back_to_the_last_bit(tmp_path):
    value = -0.1 - 1e-17 + 1 / 3
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add("f", "p", value)
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.read("f")["p"] == value
    again.close()


def test_a_repeat_does_not_go_unnoticed(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add("f", "p", 1.0)
    with pytest.raises(sqlite3.IntegrityError):
        journal.add("f", "p", 2.0)
    assert journal.read("f") == {"p": 1.0}
    journal.close()


@pytest.mark.parametrize(
    "content", [b"this is not a database, but it is long enough to look like one" * 40, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_a_damaged_file_is_a_user_error_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="delete it"):
        Journal(path)
    assert path.read_bytes() == content


def test_a_directory_that_does_not_exist_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Journal(tmp_path / "missing" / "journal.sqlite")
