"""Share evaluations among workers; one that dies costs what it had not finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from calib.errors import UserError
from smpq.problem.policy import Policy
from smpq.value.value import TOGETHER, PolicyValue
from smpq.value.workers.items import cut
from smpq.value.workers.process import Answer, Died, Ready, Work, pack

_ITEMS_PER_WORKER = 3
"""Few, as each piece starts the network anew; enough that workers finish at about the same time."""
_MOST_DEATHS = 3


class Worker(Hashable, Protocol):
    """A process somewhere that answers one piece of work at a time."""

    def give(self, work: Work) -> None:
        """Hand over work; does not raise when the worker is gone, which `WorkerSource.wait` tells."""
        ...


class WorkerSource(Protocol):
    """Where workers come from: this machine, or a Ray cluster."""

    count: int

    def start(self) -> Worker:
        """Begin to start a worker; it says Ready later."""
        ...

    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ready | Answer | Died]]:
        """Wait until at least one of the workers has said something, or died."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


@dataclass
class _Item:
    call: int
    indices: list[int]
    deaths: int = 0


@dataclass
class _State:
    ready: Ready | None = None
    item: _Item | None = None
    loaded: set[int] = field(default_factory=set)


class WorkerError(RuntimeError):
    """An exception in a worker, with its traceback as text."""


class WorkerPool:
    """Workers that any number of value functions share. They are started on first use, and a dead one is replaced."""

    def __init__(self, source: WorkerSource) -> None:
        """Take over `source`, which `close` closes."""
        self._source = source
        self._workers: dict[Worker, _State] = {}
        self._games = 0
        self._calls = 0
        self._failed_starts = 0

    @property
    def count(self) -> int:
        """How many workers there are."""
        return self._source.count

    def pids(self) -> list[int]:
        """Return the process ids of the workers that have started, each on its machine."""
        return [state.ready.pid for state in self._workers.values() if state.ready is not None]

    def compute(self, value: PolicyValue) -> PooledValue:
        """Return a value function whose policies the workers evaluate."""
        self._games += 1
        return PooledValue(self, self._games, value)

    def close(self) -> None:
        """End all workers."""
        self._workers.clear()
        self._source.close()

    def evaluate(
        self,
        game: int,
        payload: bytes,
        policies: Sequence[Policy],
        pieces: Sequence[list[int]],
        fold: int | None = None,
    ) -> Iterator[tuple[int, float]]:
        """Yield (index, value) piece by piece, in the order in which they are finished.

        UserError when a policy ends worker after worker, or none can be started; WorkerError for an exception in a
        worker.
        """
        self._calls += 1
        waiting = deque(_Item(self._calls, piece) for piece in pieces)
        unfinished = sum(map(len, pieces))
        while unfinished:
            while len(self._workers) < self._source.count:
                self._workers[self._source.start()] = _State()
            for worker, state in self._workers.items():
                if waiting and state.ready and state.item is None:
                    state.item = waiting.popleft()
                    work = tuple(policies[index] for index in state.item.indices)
                    worker.give(Work(game, work, None if game in state.loaded else payload, fold))
                    state.loaded.add(game)
            # everything that was heard is noted before anything is yielded: the caller may not come back
            heard = [(self._note(worker, said), said) for worker, said in self._source.wait(list(self._workers))]
            for item, said in heard:
                if item is None or item.call != self._calls:  # nothing was asked, or by a call that was abandoned
                    continue
                if isinstance(said, Died):
                    waiting.extendleft(_again(item, policies, said))
                elif isinstance(said, Answer):
                    unfinished -= len(item.indices)
                    yield from ((item.indices[index], value) for index, value in _values(said))

    def _note(self, worker: Worker, said: Ready | Answer | Died) -> _Item | None:
        """Keep what a worker's state is now; returns what it had in hand."""
        state = self._workers[worker]
        item, state.item = state.item, None
        if isinstance(said, Ready):
            state.ready, self._failed_starts = said, 0
        elif isinstance(said, Died):
            del self._workers[worker]
            self._failed_starts += state.ready is None
            if self._failed_starts >= _MOST_DEATHS:
                self._failed_starts = 0
                raise UserError(
                    f"workers end before they have started ({said.reason}): use fewer --workers, or --workers 1 to see "
                    "why"
                )
        elif not said.values:  # it may have failed to read the value function
            state.loaded.clear()
        return item


class PooledValue:
    """A PolicyValue that the workers of a pool compute."""

    def __init__(self, pool: WorkerPool, game: int, value: PolicyValue) -> None:
        """`game` is its number among those of the pool."""
        self.identity = value.identity
        self.together = TOGETHER * pool.count
        self.folds = value.folds
        self._pool = pool
        self._game = game
        self._value = value
        self._whole: PooledValue | None = None
        self._fold: int | None = None
        self._payload: bytes | None = None

    def fold(self, number: int) -> PooledValue:
        """Return the same value on one part of the samples; the workers need no other copy for it."""
        part = PooledValue(self._pool, self._game, self._value.fold(number))
        part._whole, part._fold = self, number
        return part

    def packed(self) -> bytes:
        """Return the value function as the workers read it."""
        if self._payload is None:
            self._payload = pack(self._value)
        return self._payload

    def __call__(self, policies: Sequence[Policy]) -> Iterator[tuple[int, float]]:
        """Yield (index, value) of every policy, in the order in which they are finished."""
        wanted = _ITEMS_PER_WORKER * self._pool.count if self._pool.count > 1 else 1
        pieces = cut(policies, self._value.steps_behind(), self._value.steps, wanted)
        yield from self._pool.evaluate(self._game, (self._whole or self).packed(), policies, pieces, self._fold)


def _values(answer: Answer) -> tuple[tuple[int, float], ...]:
    if answer.wrong is not None:
        raise UserError(answer.wrong)
    if answer.failure is not None:
        raise WorkerError(f"in a worker:\n{answer.failure}")
    return answer.values


def _again(item: _Item, policies: Sequence[Policy], death: Died) -> list[_Item]:
    """Return what is to be done again; after a second death each policy alone, so that the one to blame is found."""
    deaths = item.deaths + 1
    if deaths >= _MOST_DEATHS:
        raise UserError(
            f"{deaths} workers ended while they evaluated the policy {policies[item.indices[0]].key()[:200]} "
            f"({death.reason}): "
            "give them less to do at once with --memory-limit, or use fewer --workers"
        )
    parts = [item.indices] if deaths < _MOST_DEATHS - 1 else [[index] for index in item.indices]
    return [_Item(item.call, part, deaths) for part in parts]
