"""How many threads PyTorch gets: what the clock says, unless somebody has decided."""

import pytest
import torch

from calib.batches import calibration_batches
from calib.tasks import load_task
from calib.threads import computing_with
from deploy.run import float_model, opening, threads
from deploy.run.float_model import trace_float_model
from deploy.run.settings import Settings
from deploy.run.threads import fastest
from deploy.stages.run_all import open_run
from deploy.targets.target import target_from_name
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
    monkeypatch.setattr(threads, "fastest", lambda _compute, most: most)
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
        asked.append((compute(), most))
        return 2

    monkeypatch.setattr(threads, "fastest", probe)
    with open_run(run, Progress()):
        assert torch.get_num_threads() == 2
    product, network = asked
    assert (type(product[0]), type(network[0])) == (list, torch.Tensor)
    assert product[1] == network[1] == before
    assert torch.get_num_threads() == before


def test_a_new_run_traces_with_what_a_product_is_fastest_with(good_run, tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before, probed, traced = torch.get_num_threads(), [3, 2], []

    def trace(*arguments):
        traced.append(torch.get_num_threads())
        return trace_float_model(*arguments)

    monkeypatch.setattr(threads, "fastest", lambda compute, _most: (compute(), probed.pop(0))[1])
    monkeypatch.setattr(opening, "trace_float_model", trace)
    run = copy_of(good_run, tmp_path / "run")
    (run / "calibration.json").unlink()
    with open_run(run, Progress()):
        assert torch.get_num_threads() == 2
    assert (traced, torch.get_num_threads()) == ([3], before)


def test_the_same_is_traced_whatever_the_number_of_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(float_model, "trace_folded", lambda *_, **__: (seen.append(torch.get_num_threads()), 1 / 0))
    task = load_task("tests.tiny_task:task")
    settings = Settings("tests.tiny_task:task")
    with computing_with(2), pytest.raises(ZeroDivisionError):
        trace_float_model(
            task.model(), calibration_batches(task.calibration()), settings, target_from_name("ort-cpu"), Progress()
        )
    assert seen == [1]
