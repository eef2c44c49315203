"""How long somebody waits: until a time, or until Ctrl-C."""

import os
import signal

import pytest

from deploy.terminal import patience
from deploy.terminal.patience import Patience


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def usual():
    """Ctrl-C is heard, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_ends_with_its_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    short, endless = Patience(5), Patience()
    assert not short.over()
    now[0] = 105.0
    assert short.over()
    assert not endless.over()


def test_the_first_interrupt_ends_it_and_the_second_one_the_process():
    said, waiting = [], Patience()
    with waiting.interruptible(said.append):
        interrupt()
        assert waiting.over()
        assert said == ["the search ends with the best that it has; Ctrl-C again stops at once"]
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_behind_the_search_an_interrupt_is_what_it_was():
    waiting = Patience()
    with waiting.interruptible(print):
        pass
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not waiting.over()


def test_who_does_not_hear_an_interrupt_still_does_not():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting = Patience()
    with waiting.interruptible(print):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        interrupt()
    assert not waiting.over()
