"""Signals that end a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from deploy.terminal.signals import Stopped, deferred, stopped_by_signals
from tests.conftest import ROOT
from tests.processes import hearing_signals, ignoring_hangups

WAITS = """
import sys, time
from deploy.terminal.signals import Stopped, deferred, stopped_by_signals
with stopped_by_signals():
    try:
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        time.sleep(60)
    finally:
        with deferred():
            time.sleep(0.3)
            sys.stdout.write("cleaned up\\n")
            sys.stdout.flush()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_is_an_exception_and_the_process_cleans_up(name):
    command = hearing_signals(sys.executable, "-c", WAITS)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        time.sleep(0.1)
        process.send_signal(getattr(signal, name))  # as when a terminal is closed: the shell sends it, and the system
        assert process.stdout.read() == "cleaned up\n"
    assert process.returncode == 128 + getattr(signal, name)


def test_a_signal_that_was_ignored_stays_so():
    command = ignoring_hangups(sys.executable, "-c", WAITS.replace("time.sleep(60)", "time.sleep(1)"))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == "cleaned up\n"
    assert process.returncode == 0


def test_what_came_meanwhile_is_raised_at_the_end():
    done = []

    def asked_to_end():
        with stopped_by_signals(), deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("goes on")

    with pytest.raises(Stopped) as stopped:
        asked_to_end()
    assert (stopped.value.code, stopped.value.name, done) == (143, "SIGTERM", ["goes on"])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_without_handlers_nothing_is_deferred():
    with deferred():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
