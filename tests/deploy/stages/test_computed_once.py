"""A whole run computes nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest

from calib.formats.format import Format
from deploy.lowering import lower
from deploy.run import opening
from deploy.run.settings import Settings
from deploy.stages import run_all, scoring
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from tests.commands import TINY, done, smpq
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


def test_a_run_scores_once_and_lowers_each_policy_once(tmp_path, monkeypatch, counted):
    board = Board(FASTER)
    monkeypatch.setattr(opening, "device_from_address", lambda _address, _directory: board)
    done("run", *TINY, "--budget", "latency=0.8x", "--out", tmp_path / "run", "--quiet")
    assert counted["scores"] == {"": 1}
    assert len(counted["lowered"]) > 3, "the float engine, some of the loop, the one that was chosen"
    assert set(counted["lowered"].values()) == {1}
    assert counted["pages"] == {"": 1}


def test_a_thorough_measurement_that_sends_the_search_back_scores_nothing_again(tmp_path, monkeypatch, counted):
    class Slower(Board):
        """Engines take longer when they are timed thoroughly."""

        def measure(self, experiment, announce=None):
            costs = dict.fromkeys(FASTER, 0.0) if experiment.protocol.singles else FASTER
            self._costs = costs
            return super().measure(experiment, announce)

    board = Slower(FASTER)
    monkeypatch.setattr(opening, "device_from_address", lambda _address, _directory: board)
    done_or_not_met(tmp_path / "run")
    assert counted["scores"] == {"": 1}
    assert set(counted["lowered"].values()) == {1}
    assert counted["pages"] == {"": 1}


def done_or_not_met(run):
    result = smpq("run", *TINY, "--budget", "latency=0.8x", "--out", run)
    assert result.code in (0, 1), result.err
    assert "searching on" in result.out + result.err


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
