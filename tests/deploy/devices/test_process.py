"""Programs whose output is taken as it comes: their errors are complete, and nothing waits for who keeps the pipe."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from calib.errors import UserError
from deploy.devices import process
from deploy.devices.process import TooMuchOutput, run_program

LEAVES_ONE_BEHIND = """
import os, subprocess, sys
kept = subprocess.Popen(["sleep", "3600"], stdout=subprocess.DEVNULL, start_new_session=True)
os.write(1, str(kept.pid).encode())
os.write(2, b"x" * 200_000 + b"the last word")
sys.exit(3)
"""

FILLS_A_PIPE_THAT_DOES_NOT_BLOCK = """
import os
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    os._exit(3)
"""


def run(program: str, take=lambda chunk: None, most_bytes: int = 1000) -> tuple[int, str]:
    return run_program([sys.executable, "-S", "-c", program], "", take, most_bytes)


def test_the_errors_end_with_the_program_although_another_one_keeps_them_open():
    said: list[bytes] = []
    code, errors = run(LEAVES_ONE_BEHIND, said.append)
    os.kill(int(b"".join(said)), signal.SIGKILL)  # it was still there
    assert code == 3
    assert errors.endswith("the last word")
    assert 1000 < len(errors) <= 2 << 16


def test_a_pipe_that_the_program_left_full_and_non_blocking_is_read_to_its_end(monkeypatch):
    monkeypatch.setattr(process, "_CHUNK_BYTES", 16)  # it is still full when the program has ended
    code, errors = run(FILLS_A_PIPE_THAT_DOES_NOT_BLOCK)
    assert code == 3
    assert len(errors) >= 4096
    assert set(errors) == {"x"}


def test_no_errors_are_an_empty_text():
    assert run("print(1)") == (0, "")


def test_output_without_an_end_stops_it():
    with pytest.raises(TooMuchOutput, match="which cannot be right"):
        run("while True: print('x' * 10_000)")


def test_an_exception_ends_it_and_closes_the_pipes():
    before = len(list(Path("/proc/self/fd").iterdir()))

    def interrupt(_: bytes) -> None:
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            run("import time; print('there', flush=True); time.sleep(3600)", interrupt)
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 5


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(UserError, match="there is no no-such-program on this machine"):
        run_program(["no-such-program"], "", lambda chunk: None, 1000)
