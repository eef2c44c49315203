"""One process works on a run at a time, and a wrong input leaves nothing behind."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from calib.errors import UserError
from deploy.run.directory import Run
from tests.conftest import ROOT
from tests.deploy.run.test_directory import IDENTITY, SETTINGS, names_in


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "deep" / "run")
    made.keep(SETTINGS, IDENTITY)
    return made


SERVER = """
import sys
from pathlib import Path
from calib.errors import UserError
from deploy.run.directory import Run
held = {}
for line in sys.stdin:
    word, path = line.rstrip().split(" ", 1)
    try:
        held[path] = Run(Path(path))
        held[path].lock()
        answer = "mine"
    except UserError as error:
        answer = error
    if word == "try":
        del held[path]
    print(answer, flush=True)
"""


class Other:
    """Another process that locks runs."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, text=True, **pipes)

    def ask(self, word, path):
        """`lock` keeps the lock that it gets, `try` gives it back."""
        self.process.stdin.write(f"{word} {path}\n")
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().rstrip()

    def gets(self, path, word="try"):
        self.ask(word, path)
        return self.answer()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def other():
    process = Other()
    yield process
    process.end()


def refused(path):
    return f"another process works on {path}: wait until it is done, stop it, or use another --out"


def test_two_processes_do_not_work_on_one_run(run, other):
    assert other.gets(run.path) == "mine"
    run.lock()
    run.lock()  # more than once in one process is no harm
    assert other.gets(run.path) == refused(run.path)
    assert other.gets(f"{run.path}2") == "mine"


def test_of_two_that_begin_a_run_together_one_gets_it(tmp_path, other):
    for index in range(20):
        run = Run(tmp_path / str(index))
        other.ask("lock", run.path)
        mine = "mine"
        try:
            run.lock()
        except UserError as error:
            mine = str(error)
        assert sorted([mine, other.answer()]) == sorted(["mine", refused(run.path)])


def test_the_lock_ends_with_its_object(tmp_path, other):
    first = Run(tmp_path)
    first.lock()
    assert other.gets(tmp_path) == refused(tmp_path)
    del first
    assert other.gets(tmp_path) == "mine"


def test_a_lock_whose_file_was_removed_does_not_count(tmp_path, other):
    """Otherwise two processes could hold a lock of one run, of files that had the same name."""
    first = Run(tmp_path / "run")
    first.lock()
    first.discard_if_new()
    second = Run(tmp_path / "run")
    second.lock()
    assert other.gets(tmp_path / "run") == refused(tmp_path / "run")


def test_the_lock_ends_with_its_process(tmp_path):
    other, mine = Other(), Run(tmp_path)
    assert other.gets(tmp_path, "lock") == "mine"
    with pytest.raises(UserError, match="another process works on"):
        mine.lock()
    other.end()
    mine.lock()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(UserError, match=r"cannot write .*: No locks available"):
        Run(tmp_path).lock()


def test_checking_creates_nothing(tmp_path):
    run = Run(tmp_path / "run")
    run.check(SETTINGS)
    assert not run.path.exists()
    with pytest.raises(UserError, match=r"is not a run \(it has no run.json\): make one with smpq run or smpq score"):
        run.settings()


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / ".hidden").write_text("")
    Run(tmp_path).check(SETTINGS)
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / "zebra").mkdir()
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\): give --out a new or empty directory"):
        Run(tmp_path).check(SETTINGS)
    with pytest.raises(UserError, match=r"thesis.tex is a file: give --out a directory"):
        Run(tmp_path / "thesis.tex").check(SETTINGS)


def test_a_run_in_the_place_of_a_file_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"cannot write {path}: "):
            Run(path).lock()


def test_what_the_lock_made_is_taken_away_again(tmp_path):
    there, new = tmp_path / "there", tmp_path / "new"
    there.mkdir()
    for path in (there, new):
        run = Run(path)
        run.lock()
        run.check(SETTINGS)
        assert names_in(run) == ["run.lock"]
        run.discard_if_new()
    assert not new.exists()
    assert list(there.iterdir()) == []


def test_a_run_with_content_is_not_taken_away(run):
    run.lock()
    run.discard_if_new()
    assert names_in(run) == ["run.json", "run.lock"]


def test_directories_above_that_the_lock_made_are_taken_away_too(tmp_path):
    for _ in range(2):
        run = Run(tmp_path / "runs" / "task-target")
        run.lock()
        run.discard_if_new()
        assert list(tmp_path.iterdir()) == []
    other = tmp_path / "runs" / "other"
    run.lock()
    other.mkdir()
    run.discard_if_new()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"], "another run has begun there"
