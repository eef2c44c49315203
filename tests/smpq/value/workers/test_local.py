import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from calib.errors import UserError
from calib.formats.format import Format
from smpq.quantized.plan import QdqRules
from smpq.value.evaluate import Evaluator
from smpq.value.journal import Journal
from smpq.value.workers import local
from smpq.value.workers.local import LocalWorkerSource
from smpq.value.workers.pool import WorkerError, WorkerPool
from tests.smpq.value.workers.evaluated import OUTPUTS, Deadly, Refusing, Targeted, Task, compute, drawn, ends_at_once


@pytest.fixture(scope="module")
def pool():
    made = WorkerPool(LocalWorkerSource(2))
    yield made
    made.close()


@contextlib.contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids, seconds=120):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(("value", "rules"), [("kl", QdqRules("affine")), ("loss", OUTPUTS), ("metric", OUTPUTS)])
def test_workers_give_the_same_numbers_to_the_last_bit(pool, value, rules):
    here = compute(value=value, rules=rules)
    asked = drawn(here.space, 40)
    found = list(pool.compute(here)(asked))
    assert len(found) == 40
    with one_thread():
        assert dict(found) == dict(here(asked))
    assert pool.count == 2
    assert os.getpid() not in pool.pids()


def test_workers_have_the_targets_that_a_divergence_takes(pool):
    here = compute(Targeted())
    asked = drawn(here.space, 5)
    with one_thread():
        assert dict(pool.compute(here)(asked)) == dict(here(asked))


def test_the_journal_and_the_batches_suit_the_workers(pool, tmp_path):
    here = compute()
    shared = pool.compute(here)
    assert shared.together == 2 * here.together
    assert shared.identity == here.identity
    asked = drawn(here.space, 70)
    first = Evaluator(shared, Journal(tmp_path / "journal.sqlite"), "weights")
    with one_thread():
        values = Evaluator(here).many(asked)
    assert first.many(asked) == values
    alone = Evaluator(here, Journal(tmp_path / "journal.sqlite"), "weights")
    assert alone.many(asked) == values
    assert alone.evaluations == 0, "who computed a value does not matter"


def test_a_killed_worker_costs_its_own_piece_only(pool):
    here = compute(samples=400)
    shared, asked = pool.compute(here), drawn(here.space, 60)
    with one_thread():
        expected = dict(here(asked))
    list(shared(asked[:2]))
    for delay in (0.0, 0.05):
        victim = pool.pids()[0]
        timer = threading.Timer(delay, os.kill, (victim, signal.SIGKILL))
        timer.start()
        found = list(shared(asked))
        timer.join()
        assert len(found) == 60
        assert dict(found) == expected
        assert gone([victim])
    deadline = time.monotonic() + 300
    while len(pool.pids()) < 2:  # the new one is still starting
        assert time.monotonic() < deadline
        list(shared(asked))


def test_an_abandoned_call_does_not_disturb_the_next(pool):
    here = compute(samples=400)
    shared = pool.compute(here)
    first = iter(shared(drawn(here.space, 60)))
    next(first)
    first.close()
    asked = drawn(here.space, 60, seed=1)
    with one_thread():
        assert dict(shared(asked)) == dict(here(asked))


def test_what_the_user_has_to_change_and_what_is_a_bug(pool):
    with pytest.raises(UserError, match="the labels are missing: download them"):
        list(pool.compute(compute(Refusing(), "loss"))(drawn(compute().space, 5)))
    here = compute()
    foreign = here.space.uniform(Format.from_text("w5a8")).with_format("stem", Format.from_text("w5a8"))
    with pytest.raises(WorkerError, match=r"(?s)Traceback.*calibrate\.py.*AttributeError"):
        list(pool.compute(here)([foreign]))
    assert len(list(pool.compute(here)(drawn(here.space, 5)))) == 5, "the workers are still there"


def test_a_policy_that_ends_every_worker_is_named():
    pool, deadly = WorkerPool(LocalWorkerSource(1)), compute(Deadly(), "loss")
    asked = drawn(deadly.space, 3)
    with pytest.raises(
        UserError, match=r"3 workers ended while they evaluated the policy .*killed by signal 9.*--memory-limit"
    ) as raised:
        list(pool.compute(deadly)(asked))
    assert any(policy.key() in str(raised.value) for policy in asked)
    pool.close()


def test_a_task_that_cannot_be_sent_is_refused_with_what_to_do(pool):
    class Local(Task):
        pass

    here = compute(Local(), "metric")
    with pytest.raises(UserError, match=r"cannot be sent .*Local.*top level of a module.*--value kl.*--workers 1"):
        list(pool.compute(here)(drawn(here.space, 2)))
    with_kl = compute(Local())
    assert len(list(pool.compute(with_kl)(drawn(here.space, 2)))) == 2, "no task is needed"


def test_workers_that_end_before_they_have_started(monkeypatch):
    monkeypatch.setattr(local, "_serve", ends_at_once)
    pool, here = WorkerPool(LocalWorkerSource(2)), compute()
    with pytest.raises(UserError, match=r"end before they have started \(exit code 1\)"):
        list(pool.compute(here)(drawn(here.space, 2)))
    pool.close()


def test_workers_that_the_system_does_not_start(monkeypatch):
    def refuse(_process):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(local._CONTEXT.Process, "start", refuse)
    pool, here = WorkerPool(LocalWorkerSource(2)), compute()
    with pytest.raises(UserError, match=r"cannot be started .*temporarily unavailable.*--workers 1"):
        list(pool.compute(here)(drawn(here.space, 2)))
    pool.close()


def test_workers_share_what_they_import(pool):
    """They come from one server, which has torch already: each is there at once."""
    list(pool.compute(compute())(drawn(compute().space, 2)))
    parents = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in pool.pids()}
    assert len(parents) == 1
    assert parents != {str(os.getpid())}


def test_workers_end_with_close_and_when_forgotten():
    for end in (WorkerPool.close, lambda pool: None):
        pool, here = WorkerPool(LocalWorkerSource(1)), compute()
        list(pool.compute(here)(drawn(here.space, 2)))
        pids = pool.pids()
        assert all(map(alive, pids))
        end(pool)
        del pool
        assert gone(pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(warm, number):
    process = warm.run("tests.smpq.value.workers.evaluated", new_session=True)
    pids = []
    while not pids:
        pids = [int(text) for text in process.stdout.readline().split()]
    # Ctrl-C goes to every process of the terminal
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert gone(pids)
    assert errors.count("Traceback") == (1 if number == signal.SIGINT else 0), errors


def test_a_part_of_the_samples_needs_no_other_copy(pool):
    here = compute(samples=400)
    assert here.folds > 1
    shared, asked = pool.compute(here), drawn(here.space, 20)
    with one_thread():
        for number in (0, here.folds - 1):
            assert dict(shared.fold(number)(asked)) == dict(here.fold(number)(asked))
        assert dict(shared(asked)) == dict(here(asked)), "a worker keeps the whole beside its parts"
