import os
import sqlite3
import subprocess
import sys

import pytest

from calib.errors import UserError
from smpq.value.journal import Journal
from tests.conftest import ROOT


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
    "content",
    [b"this is not a database, but it is long enough to look like one" * 40, b"SQLite format 3\0" + b"\xff" * 4096],
)
def test_a_damaged_file_is_a_user_error_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="delete it"):
        Journal(path)
    assert path.read_bytes() == content


def test_a_directory_that_does_not_exist_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot be opened\. See that its directory exists"):
        Journal(tmp_path / "missing" / "journal.sqlite")


def filled(path, rows=50):
    journal = Journal(path)
    for number in range(rows):
        journal.add("f", f"policy {number}", float(number))
    return journal


def add_many(journal, count):
    for number in range(count):
        journal.add("g", f"a policy with a long name {number}", 0.0)


def test_a_full_disk_costs_no_journal(tmp_path):
    journal = filled(tmp_path / "journal.sqlite")
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(
        UserError, match=r"the disk is full\. Free some space; what the journal holds is kept"
    ) as raised:
        add_many(journal, 1000)
    assert "delete" not in str(raised.value)
    journal.close()
    assert len(Journal(tmp_path / "journal.sqlite").read("f")) == 50


@pytest.mark.parametrize("limit", [0, 4096, 100_000])
def test_no_space_for_any_file_costs_no_journal(tmp_path, limit):
    path = tmp_path / "journal.sqlite"
    filled(path).close()
    script = """
import resource, sys
from pathlib import Path
from calib.errors import UserError
from smpq.value.journal import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    journal = Journal(Path(sys.argv[1]))
    journal.read("f")
    for number in range(100_000):
        journal.add("g", f"a policy with a long name {number}", 0.0)
except UserError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", script, path, str(limit)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    assert "Free some space" in said
    assert "the same command goes on from there" in said
    assert "delete" not in said
    again = Journal(path)
    assert len(again.read("f")) == 50
    again.add("f", "one more", 0.0)
    again.close()


def test_a_locked_journal_is_waited_for(tmp_path):
    journal = filled(tmp_path / "journal.sqlite")
    journal._database.execute("PRAGMA busy_timeout=10")
    other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"another program is using it\. Wait"):
        journal.add("f", "q", 0.0)
    other.execute("ROLLBACK")
    journal.add("f", "q", 0.0)
    other.close()
    journal.close()


def test_a_journal_that_may_not_be_written_is_kept(tmp_path):
    journal = filled(tmp_path / "journal.sqlite")
    journal._database.execute("PRAGMA query_only=1")
    with pytest.raises(UserError, match=r"it may only be read\. Allow writing to it") as raised:
        journal.add("f", "q", 0.0)
    assert "delete" not in str(raised.value)
    journal.close()


def test_another_database_is_no_journal(tmp_path):
    other = sqlite3.connect(tmp_path / "journal.sqlite")
    other.execute("CREATE TABLE evaluations (something TEXT)")
    other.close()
    journal = Journal(tmp_path / "journal.sqlite")
    for use in (lambda: journal.read("f"), lambda: journal.add("f", "p", 0.0)):
        with pytest.raises(UserError, match=r"is damaged or is no journal .*: delete it"):
            use()
    journal.close()
