"""Searches over the engines of a made-up network, as the stage runs them, for the tests of loop.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calib.formats.format import FP32
from deploy.files.loop import LoopFile
from deploy.latency.history import Search
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import Observation, Refusal
from deploy.latency.steps import Goal, LoopSettings, Outcome
from deploy.run.directory import Run
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy
from smpq.solve.effort import Effort
from tests.deploy.latency.test_loop import Bench
from tests.deploy.synthetic import W4, W8A8, chain, space
from tests.smpq.one_by_one import OneByOne

BENCH = Bench(seed=1, of=space(4, W8A8, W4, FP32))
SPACE = BENCH.space
BUDGET, LIMIT, BOARD = "latency=0.75x", 0.75, "a board"

Verdict = Observation | Refusal


def verdict(policy: Policy) -> Verdict:
    """Measure a policy; the runtime has no kernel for one format of one layer."""
    if policy["layer2"] == W4:
        return Refusal(policy, "no kernel for layer2", (("layer2", W4),))
    return BENCH.observation(policy)


class Device:
    """Measures as `verdict` says, until the power fails; knows what it was asked, as measurements.json does."""

    def __init__(self, fails_after: int = 1000) -> None:
        self.found: list[Verdict] = []
        self.asked: set[str] = set()
        self.left = fails_after

    def __call__(self, policy: Policy, again: bool = False) -> Verdict:
        if self.left == 0:
            raise KeyboardInterrupt
        assert again == (policy.key() in self.asked)
        self.asked.add(policy.key())
        self.left -= 1
        self.found.append(verdict(policy))
        return self.found[-1]


def looped(history: Search) -> LatencyLoop:
    """Return a loop that has been told nothing yet, as the stage makes it."""
    starts = {"alone": {g.name: {f: -BENCH.loss[g.name, f] for f in SPACE.formats[g.name]} for g in SPACE.groups}}
    edges = [Edge(first, second, 64) for first, second in chain(SPACE)]
    goal = Goal(history.limit, (), starts, Effort())
    known = history.observations
    return LatencyLoop(SPACE, edges, OneByOne(BENCH.value), goal, known, LoopSettings(8), history.refusals)


def search(
    run: Run,
    measure: Callable[[Policy, bool], Verdict],
    known: Sequence[Verdict] = (),
    budget: str = BUDGET,
    machine: str = BOARD,
    limit: float = LIMIT,
) -> Outcome:
    """Run the loop as the stage does."""
    history = Search(run, SPACE, budget, machine, limit, known)
    history.begin()
    outcome = looped(history).run(history.resumed(measure), keep=history.keep)
    history.end(outcome)
    return outcome


def said(outcome: Outcome) -> tuple[object, ...]:
    """Return what an outcome says, the latency model aside."""
    return (
        outcome.policy,
        outcome.value,
        outcome.observation,
        outcome.met,
        outcome.stop_reason,
        outcome.steps,
        outcome.finalists,
    )


def read(run: Run) -> LoopFile:
    return run.read(LoopFile)
