"""How many threads PyTorch gets: what the clock says, unless somebody has decided."""

import pytest
import torch

from deploy.run import threads
from deploy.run.threads import fastest, probed_threads
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from tests.commands import copy_of


@pytest.fixture
def clock(monkeypatch):
    """A machine on which a call takes as long as `seconds` says for a number of threads."""
    state = {"threads": 1, "now": 0.0, "calls": 0, "seconds": {}}
    monkeypatch.setattr(threads.torch, "set_num_threads", lambda count: state.update(threads=count))
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(threads.time, "perf_counter", lambda: state["now"])
    return state


def compute(clock):
    def call():
        clock["calls"] += 1
        clock["now"] += clock["seconds"][clock["threads"]]

    return call


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ({1: 1.0, 2: 0.55, 4: 0.3, 8: 0.25}, 4),
        ({1: 1.0, 2: 0.7}, 1),
        ({1: 1.0, 2: 4.0, 4: 0.1}, 1),  # threads that wait for each other
        ({1: 1.0}, 1),
    ],
)
def test_threads_are_doubled_as_long_as_that_pays(clock, seconds, found):
    clock["seconds"] = seconds
    assert fastest(compute(clock), max(seconds)) == found


def test_a_long_run_is_timed_once(clock):
    clock["seconds"] = {1: 10.0, 2: 9.0}
    assert fastest(compute(clock), 2) == 1
    assert clock["calls"] == 2


def test_who_sets_the_environment_has_decided(good_run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(threads, "fastest", pytest.fail)
    before = torch.get_num_threads()
    with open_run(copy_of(good_run, tmp_path / "run"), Progress()):
        assert torch.get_num_threads() == before


def test_a_run_that_goes_on_keeps_its_threads_and_gives_them_back(good_run, tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    run = copy_of(good_run, tmp_path / "run")
    record = run / "calibration.json"
    record.write_text(record.read_text().replace('"threads": 1', '"threads": 2'))
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "fastest", pytest.fail)
    with open_run(run, Progress()):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_a_new_run_asks_the_clock(good_run, tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    run = copy_of(good_run, tmp_path / "run")
    (run / "calibration.json").unlink()
    before, asked = torch.get_num_threads(), []

    def probe(compute, most):
        asked.append((compute().shape, most))
        return 2

    monkeypatch.setattr(threads, "fastest", probe)
    with open_run(run, Progress()):
        assert torch.get_num_threads() == 2
    assert [most for _, most in asked] == [before]
    assert torch.get_num_threads() == before


def test_what_runs_before_the_network_can_be_timed_has_the_threads_that_a_product_is_fastest_with(monkeypatch):
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "fastest", lambda compute, most: (compute(), most + 1)[1])
    with pytest.raises(ValueError, match="the trace"), probed_threads():
        assert torch.get_num_threads() == before + 1
        raise ValueError("the trace")
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with probed_threads():
        assert torch.get_num_threads() == before
