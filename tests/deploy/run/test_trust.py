"""A run directory from someone else names a task, and nothing of that name is imported or called."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from calib.errors import UserError
from deploy.run.settings import Settings
from deploy.run.trust import check_trusted, remember, state_directory
from deploy.terminal.progress import Progress
from tests.commands import TINY, contents, done, refused, smpq

TASK = TINY[1]
MARK = "imported"
COMMANDS = {
    "solve": ("--budget", "avg_bits=8"),
    "finetune": (),
    "export": (),
    "build": (),
    "measure": (),
    "bundle": ("{directory}", "--budget", "latency=0.9x"),
    "feedback": ("{directory}/measurements.json",),
    "explain": (),
    "verify": (),
}


@pytest.fixture
def state(tmp_path, monkeypatch):
    directory = tmp_path / "state"
    monkeypatch.setenv("SMPQ_STATE", str(directory))
    return directory


@pytest.fixture
def elsewhere(tmp_path):
    return tmp_path / "from elsewhere"


def forged(run: Path, **settings: object) -> Path:
    """Name another task in run.json, as a stranger can."""
    record = json.loads((run / "run.json").read_text())
    record["settings"].update(settings)
    (run / "run.json").write_text(json.dumps(record))
    return run


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    run = tmp_path_factory.mktemp("scored") / "run"
    done("score", *TINY, "--out", run)
    return run


@pytest.fixture
def stranger(scored, elsewhere):
    """A run that somebody else has made."""
    return shutil.copytree(scored, elsewhere)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module in the working directory that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text(f"from pathlib import Path\nPath({MARK!r}).mkdir()\n")
    return "trap:task"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_the_task_of_a_stranger(stranger, trap, tmp_path, command):
    forged(stranger, task=trap)
    before = contents(stranger)
    more = [text.format(directory=tmp_path / "bundle") for text in COMMANDS[command]]
    assert "names the task 'trap:task', which is code" in refused(command, stranger, *more)
    assert contents(stranger) == before
    assert not Path(MARK).exists()
    assert f"is a run of the task 'trap:task', not of '{TASK}'" in refused(command, stranger, "--task", TASK, *more)
    assert not Path(MARK).exists()


def test_the_report_imports_nothing(stranger, trap):
    smpq("report", forged(stranger, task=trap))
    assert not Path(MARK).exists()


@pytest.mark.parametrize("task", ["runpy:run_path", "shutil:rmtree"])
def test_functions_of_the_standard_library_are_not_called(stranger, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "notes.txt"
    notes.write_text(f"__import__('os').mkdir({MARK!r})")
    refused("solve", forged(stranger, task=task, data=str(notes)), "--budget", "avg_bits=8")
    assert not Path(MARK).exists()
    assert notes.is_file()


def test_a_stranger_is_believed_when_the_task_is_given(stranger):
    done("solve", stranger, "--budget", "avg_bits=8", "--task", TASK)
    assert "repeat the command with --task" in refused("export", stranger)  # it is asked for each time
    done("score", *TINY, "--out", stranger)  # the whole command line of the run makes it one's own
    done("export", stranger)


def test_ones_own_run_needs_no_task(state, tmp_path):
    run = tmp_path / "run"
    done("score", *TINY, "--out", run)
    done("solve", run, "--budget", "avg_bits=8")
    done("solve", tmp_path / "." / "run" / ".." / "run", "--budget", "avg_bits=8")
    (tmp_path / "link").symlink_to(run)
    done("solve", tmp_path / "link", "--budget", "avg_bits=8")
    (record,) = (state / "runs").iterdir()
    assert record.stat().st_mode & 0o777 == 0o600
    assert json.loads(record.read_text())["task"] == TASK
    assert not any(str(state) in content.decode("latin-1") for content in contents(run).values())


@pytest.mark.parametrize("change", [{"task": "trap:task"}, {"data": "/etc"}, {"weights": "/etc/passwd"}])
def test_a_run_that_was_changed_since_is_not_believed(state, tmp_path, change):
    quiet = Progress(Console(quiet=True))
    remember(tmp_path, Settings(TASK), quiet)
    check_trusted(tmp_path, Settings(TASK, seed=3), None)
    with pytest.raises(UserError, match="which is code"):
        check_trusted(tmp_path, Settings(**{"task": TASK, **change}), None)
    with pytest.raises(UserError, match="which is code"):
        check_trusted(tmp_path / "moved", Settings(TASK), None)


def test_built_in_tasks_need_no_record(state, tmp_path):
    remember(tmp_path, Settings("digits"), Progress(Console(quiet=True)))
    check_trusted(tmp_path, Settings("digits"), None)
    assert not state.exists()


@pytest.mark.parametrize("damage", ["[]", "{", '{"schema": 9}', ""])
def test_a_damaged_record(state, tmp_path, damage):
    remember(tmp_path, Settings(TASK), Progress(Console(quiet=True)))
    (record,) = (state / "runs").iterdir()
    record.write_text(damage)
    with pytest.raises(UserError, match="give --task again"):
        check_trusted(tmp_path, Settings(TASK), None)
    check_trusted(tmp_path, Settings(TASK), TASK)


def test_a_record_that_others_can_write_is_not_believed(state, tmp_path):
    remember(tmp_path, Settings(TASK), Progress(Console(quiet=True)))
    (record,) = (state / "runs").iterdir()
    record.chmod(0o666)
    with pytest.raises(UserError, match="can be written by others"):
        check_trusted(tmp_path, Settings(TASK), None)


def test_a_state_directory_that_cannot_be_written_stops_no_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMPQ_STATE", str(tmp_path / "file" / "state"))
    result = done("score", *TINY, "--out", tmp_path / "run")
    assert "will need --task" in result.err
    assert "which is code" in refused("solve", tmp_path / "run", "--budget", "avg_bits=8")
    done("solve", tmp_path / "run", "--budget", "avg_bits=8", "--task", TASK)


def test_a_name_is_quoted_on_one_line(stranger):
    message = refused("solve", forged(stranger, task="a\n\x1b[31m:b" + "c" * 5000), "--budget", "avg_bits=8")
    assert "\x1b" not in message
    assert len(message) < 1000
    assert len(message.strip().splitlines()) == 1


def test_where_the_state_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SMPQ_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "smpq"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert state_directory() == Path.home() / ".local" / "state" / "smpq"
