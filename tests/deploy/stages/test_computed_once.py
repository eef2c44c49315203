"""A whole run computes nothing twice."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from calib.formats.format import Format
from deploy.files.engine import LatencyFile
from deploy.lowering import lower
from deploy.run import opening
from deploy.run.directory import Run
from deploy.run.settings import Settings
from deploy.stages import run_all, scoring
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from tests.commands import TINY, smpq
from tests.deploy.board import FASTER, Board


class Counted:
    """Counts the calls of a function by what `key` makes of their arguments."""

    def __init__(self, function, key=lambda *_: ""):
        self.function, self.key, self.calls = function, key, Counter()

    def __call__(self, *arguments):
        self.calls[self.key(*arguments)] += 1
        return self.function(*arguments)


@pytest.fixture
def counted(monkeypatch):
    found = {
        "scores": Counted(scoring.find_scores),
        "lowered": Counted(lower.quantize_weights, lambda _model, plan, *_: repr(plan)),
        "pages": Counted(run_all.write_html),
    }
    monkeypatch.setattr(scoring, "find_scores", found["scores"])
    monkeypatch.setattr(lower, "quantize_weights", found["lowered"])
    monkeypatch.setattr(run_all, "write_html", found["pages"])
    return {name: each.calls for name, each in found.items()}


@pytest.fixture
def within(monkeypatch):
    """Step -> the steps that ran inside of it."""
    found, open_, step = {}, [], Progress.step

    @contextmanager
    def noted(self, name):
        for other in open_:
            found[other].add(name)
        found.setdefault(name, set())
        open_.append(name)
        with step(self, name):
            yield
        open_.remove(name)

    monkeypatch.setattr(Progress, "step", noted)
    return found


def test_a_run_whose_search_begins_again_scores_once_and_lowers_each_policy_once(
    tmp_path, monkeypatch, counted, within
):
    class Slower(Board):
        """Engines take longer when they are timed thoroughly."""

        def measure(self, experiment, announce=None):
            costs = dict.fromkeys(FASTER, 0.0) if experiment.protocol.singles else FASTER
            self._costs = costs
            return super().measure(experiment, announce)

    board = Slower(FASTER)
    monkeypatch.setattr(opening, "device_from_address", lambda _address, _directory: board)
    result = smpq("run", *TINY, "--budget", "latency=0.8x", "--out", tmp_path / "run")
    assert result.code in (0, 1), result.err
    assert "searching on" in result.err
    assert counted["scores"] == {"": 1}
    assert len(counted["lowered"]) > 3, "the float engine, those of the loop, the one that was chosen"
    assert set(counted["lowered"].values()) == {1}
    assert counted["pages"] == {"": 1}
    assert within["insert quantisers"] == set(), "whose time would be counted twice"


@pytest.mark.parametrize("quick", [1.0, 1.05], ids=["quiet before", "never quiet"])
def test_other_work_during_the_thorough_measurement_sends_no_search_back(tmp_path, monkeypatch, quick):
    class Neighboured(Board):
        """Other work begins with the thorough measurements, or was there before."""

        def measure(self, experiment, announce=None):
            by = 1.5 if experiment.protocol.singles else quick
            return self.keep(experiment, [
                replace(each, slowdown=1.5 if by == 1.5 or quick > 1 else 1.0,
                        ratio_interval=(each.ratio / by, each.ratio * by))
                for each in super().measure(experiment, announce)
            ])  # fmt: skip

    board = Neighboured(FASTER)
    monkeypatch.setattr(opening, "device_from_address", lambda _address, _directory: board)
    result = smpq("run", *TINY, "--budget", "latency=0.8x", "--out", tmp_path / "run")
    assert result.code in (0, 1), result.err
    assert "searching on" not in result.err
    timed = Run(tmp_path / "run").read(LatencyFile).measurement
    assert timed.p99_calls > 0
    assert (timed.slowdown == 1.0) == (quick == 1.0)


def test_what_was_lowered_is_lowered_again_where_its_file_has_changed(tmp_path, counted):
    settings = Settings("tests.tiny_task:task", formats="w8a8,fp32", samples=16)
    with open_run(tmp_path / "run", Progress(), settings) as workspace:
        policy = workspace.space.uniform(Format.from_text("w8a8"))
        candidate = workspace.candidates.candidate(policy)
        report = workspace.candidates.lower_into(policy, tmp_path / "model.onnx")
        content = (tmp_path / "model.onnx").read_bytes()
        assert content == candidate.model.read_bytes()
        assert report.sha256.startswith(candidate.name)
        assert sum(counted["lowered"].values()) == 1
        candidate.model.write_bytes(content[:-1])
        assert workspace.candidates.candidate(policy) == candidate
        assert candidate.model.read_bytes() == content
        assert sum(counted["lowered"].values()) == 2


def test_a_workspace_ends_when_nobody_holds_it(tmp_path):
    """The lock of the run and the connection to its journal end with it, without the garbage collector."""
    settings = Settings("tests.tiny_task:task", formats="w8a8,fp32", samples=16)
    workspace = open_run(tmp_path / "run", Progress(), settings)
    assert workspace.bench
    assert workspace.edges
    ended = weakref.ref(workspace.run)
    gc.disable()
    try:
        del workspace
        assert ended() is None
    finally:
        gc.enable()
