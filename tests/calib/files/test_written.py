"""Files are written in one step, or not at all."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calib.errors import UserError
from calib.files.storage import replacing, write_bytes, write_record
from tests.calib.files.test_storage import SAMPLE, Sample, names
from tests.conftest import ROOT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / Sample.NAME
    write_record(path, SAMPLE)
    return path


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_know_is_never_written(file: Path, value: float) -> None:
    before = file.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(file, Sample(count=1, scores={"a": {"w8": value}}))
    assert file.read_bytes() == before
    assert names(file.parent) == [file.name]


def test_a_file_is_made_with_its_directory_and_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.json"
    write_bytes(path, b"1")
    assert path.read_bytes() == b"1"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["x.json"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(file: Path, failure: type[BaseException]) -> None:
    before = file.read_bytes()

    def fail() -> None:
        with replacing(file) as unfinished:
            unfinished.write_bytes(b"half of")
            raise failure

    with pytest.raises(failure):
        fail()
    assert file.read_bytes() == before
    assert names(file.parent) == [file.name]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_is_named_and_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(
            UserError, match=r"cannot write .*sample.json: the disk is full. Free some space and run the same command"
        ):
            write_record(file, SAMPLE)
    assert file.read_bytes() == before
    assert names(file.parent) == [file.name]


def elsewhere(code: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Run code in another process; `file` is its argument."""
    lines = (
        "import os, resource, signal, sys\nfrom pathlib import Path\n"
        "from calib.files.storage import replacing, write_bytes\n"
    )
    command = [sys.executable, "-c", f"{lines}file = Path(sys.argv[1])\n{code}", str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_system_refuses_to_write_more(file: Path) -> None:
    before = file.read_bytes()
    done = elsewhere("resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\nwrite_bytes(file, bytes(5000))", file)
    assert f"UserError: cannot write {file}: File too large" in done.stderr
    assert file.read_bytes() == before
    assert names(file.parent) == [file.name]


def test_a_kill_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    code = (
        "with replacing(file) as unfinished:\n    unfinished.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert elsewhere(code, file).returncode == -signal.SIGKILL
    assert file.read_bytes() == before
    assert [name for name in names(file.parent) if not name.startswith(".")] == [file.name]


def test_what_stands_in_the_way_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory" / "full").mkdir(parents=True)
    for path in (tmp_path / "file" / "x.json", tmp_path / "directory"):
        with pytest.raises(UserError, match=f"^cannot write {path}: "):
            write_bytes(path, b"1")
    assert names(tmp_path) == ["directory", "file"]
