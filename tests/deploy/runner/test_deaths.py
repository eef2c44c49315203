"""Which ends of a process count as deaths over an engine."""

from __future__ import annotations

import pytest

from deploy.runner.experiment import Deaths, out_of_memory_kills, watched


@pytest.fixture
def memory(monkeypatch):
    """How many processes the system has ended, as memory ran out."""
    killed = [3]
    monkeypatch.setattr("deploy.runner.experiment.out_of_memory_kills", lambda: killed[0])
    return killed


def died(directory, **how):
    """Leave behind what a process leaves that is gone without a word while it measures `key`."""
    with watched(directory, "key", **how) as deaths:
        left = (directory / "started.json").read_bytes()
        crash = (directory / "crash.log").read_bytes()
    (directory / "started.json").write_bytes(left)
    (directory / "crash.log").write_bytes(crash)
    return deaths


def test_a_run_that_somebody_ends_is_no_death_over_an_engine(tmp_path, memory):
    assert [died(tmp_path, alone=True).times for _ in range(4)] == [0, 0, 0, 0]
    memory[0] += 1
    assert died(tmp_path, alone=True) == Deaths(1, crashed=False)
    assert died(tmp_path, alone=True).times == 1, "what was counted stays so"
    (tmp_path / "crash.log").write_text("Segmentation fault")
    assert died(tmp_path, alone=True) == Deaths(2, crashed=True)
    assert died(tmp_path, alone=True) == Deaths(2, crashed=True)


def test_each_death_of_a_program_that_only_measures_counts(tmp_path, memory):
    assert [died(tmp_path).times for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "count"), [("nr_free 7\noom_kill 12\nlast 1\n", 12), ("nr_free 7\n", None), ("oom_kill", None), ("", None)]
)
def test_how_often_the_system_ran_out_of_memory(tmp_path, text, count):
    (tmp_path / "vmstat").write_text(text)
    assert out_of_memory_kills(tmp_path / "vmstat") == count
    assert out_of_memory_kills(tmp_path / "none") is None


def test_where_the_system_does_not_tell_a_death_counts(tmp_path, memory):
    memory[0] = None
    assert [died(tmp_path, alone=True).times for _ in range(3)] == [0, 1, 2]
