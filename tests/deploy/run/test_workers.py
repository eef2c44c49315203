"""How many processes evaluate where nobody says: those that pay, and no more than are free."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from calib import free_memory
from deploy.run import workers
from deploy.run.workers import cores_to_take, in_words, pool_that_pays, workers_that_fit
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.solve.effort import Effort
from smpq.value.workers.resources import Resources
from tests.commands import copy_of
from tests.smpq.value.workers.evaluated import Task, compute


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of eight cores, four of which this process may use, with nothing else at work."""
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 8)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__="/usr/bin/smpq"))
    monkeypatch.setattr(workers.os, "getloadavg", lambda: (1.0, 9.0, 9.0))
    monkeypatch.setattr(workers, "_LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(workers, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(free_memory, "_SYSTEM", tmp_path / "meminfo")
    return tmp_path


def chosen(value, seconds, monkeypatch, task=None):
    """Return the workers of a search in which a policy takes so many seconds, and what was said."""
    said = io.StringIO()
    monkeypatch.setattr(value, "seconds_of_a_run", lambda: seconds)
    pool = pool_that_pays(
        value, task or Task(), Effort(scoring=60, evaluations=40), Resources(), Progress(Console(file=said))
    )
    if pool is not None:
        pool.close()  # nothing has started
    return pool and pool.count, said.getvalue()


def test_a_long_search_is_shared_by_the_cores_to_take(machine, monkeypatch):
    count, said = chosen(compute(), 6.0, monkeypatch)
    assert count == 4
    assert "at most about 5 min on one core, which 4 processes share" in said


def test_a_short_search_starts_no_process(machine, monkeypatch):
    assert chosen(compute(), 0.6, monkeypatch) == (None, "judging policies takes at most about 30 s on one core\n")
    assert chosen(compute(), 0.001, monkeypatch) == (None, "")


def test_each_process_has_enough_to_do(machine, monkeypatch):
    assert [chosen(compute(), seconds, monkeypatch)[0] for seconds in (2.3, 2.5, 3.7, 6.0)] == [None, 2, 3, 4]


@pytest.mark.parametrize("main", [SimpleNamespace(__file__="/home/me/search.py"), SimpleNamespace()])
def test_a_script_is_not_run_again_in_other_processes(machine, monkeypatch, main):
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert chosen(compute(), 6.0, monkeypatch)[0] is None


def test_a_task_that_cannot_be_sent_is_evaluated_here(machine, monkeypatch):
    class Here:
        def divergence(self, output, float_output):
            return output[:, 0] - float_output[:, 0]

    assert chosen(compute(), 6.0, monkeypatch, Here())[0] is None


@pytest.mark.parametrize(
    ("others", "quota", "cores"),
    [
        (0, "max 100000", 4),
        (2, "max 100000", 3),
        (4, "max 100000", 2),
        (6, "max 100000", 3),
        (29, "max 100000", 4),
        (0, "250000 100000", 2),
        (0, "?", 4),
    ],
)
def test_cores_that_others_leave_are_taken_or_as_many_processes_as_get_half(machine, others, quota, cores):
    (machine / "cpu.max").write_text(quota)
    (machine / "loadavg").write_text(f"9.00 9.00 9.00 {others + 1}/300 12345\n")
    assert cores_to_take() == cores


@pytest.mark.parametrize(("load", "cores"), [(1.0, 4), (3.0, 3), (30.0, 4)])
def test_the_load_of_the_last_minute_serves_where_the_system_does_not_say_who_computes(
    machine, monkeypatch, load, cores
):
    monkeypatch.setattr(workers.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert cores_to_take() == cores


def test_workers_find_room_in_half_of_the_free_memory(machine):
    value = compute()
    (machine / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {7 * value.bytes_of_a_copy // 1024} kB\n")
    assert workers_that_fit(value, 8) == 3
    (machine / "meminfo").write_text("MemAvailable: 1 kB\n")
    assert workers_that_fit(value, 8) == 1
    (machine / "meminfo").unlink()
    assert workers_that_fit(value, 80) == 16


def test_a_run_gets_them_when_it_evaluates_and_nobody_said_how_many(good_run, tmp_path, machine, monkeypatch):
    monkeypatch.setattr(workers, "_PAYS_S", 1e-9)
    path = copy_of(good_run, tmp_path / "run")
    for asked, count in ((None, 4), (1, None)):
        with open_run(path, Progress(), resources=Resources(workers=asked)) as workspace:
            assert workspace.evaluator.evaluations == 0
            assert (workspace.pool and workspace.pool.count) == count


def test_a_run_is_timed_where_policies_are_judged():
    assert 0 < compute().seconds_of_a_run() < 60


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (14.4, "14 s"), (47.0, "50 s"), (91.0, "2 min"), (6000.0, "1.7 h")]
)
def test_times_in_words(seconds, text):
    assert in_words(seconds) == text
