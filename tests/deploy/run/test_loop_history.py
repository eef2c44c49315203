"""loop.json: a search that was stopped goes on as if it had not been, and no search takes the place of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.files.loop import LoopFile
from deploy.latency.history import Search, ended_early, settle, settled, steps_for
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import Observation, Refusal
from deploy.latency.steps import Goal, Outcome, Proposal, Step, StopReason
from deploy.run.directory import Run
from smpq.problem.policy import Policy
from smpq.solve.effort import Effort
from tests.deploy.run.searches import (
    BENCH,
    BOARD,
    BUDGET,
    LIMIT,
    SPACE,
    Device,
    Verdict,
    looped,
    read,
    said,
    search,
)
from tests.deploy.synthetic import W8A8, policies
from tests.smpq.one_by_one import OneByOne


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Outcome, Device]:
    """A search that nothing stopped. To be read, not changed."""
    run, device = Run(tmp_path_factory.mktemp("history") / "run"), Device()
    return run, search(run, device), device


def test_every_step_is_in_the_file(undisturbed: tuple[Run, Outcome, Device]) -> None:
    run, outcome, device = undisturbed
    (row,) = read(run).searches
    assert (row.budget, row.machine, row.limit_ratio) == (BUDGET, BOARD, LIMIT)
    assert [step.policy for step in row.steps] == [step.proposal.policy.to_file(SPACE.groups) for step in outcome.steps]
    refused = [each for each in device.found if isinstance(each, Refusal)]
    assert refused, "or these tests would not see refusals"
    assert [(step.refused, step.blamed) for step in row.steps if step.measured is None] == [
        ("no kernel for layer2", (("layer2", "w4a16b32"),)) for _ in refused
    ]
    assert [step.measured for step in row.steps if step.measured is not None] == [
        each.ratio for each in device.found if isinstance(each, Observation)
    ]
    assert row.outcome is not None
    assert Policy.from_file(row.outcome.policy, SPACE) == outcome.policy
    assert (row.outcome.met, row.outcome.value, row.outcome.stop_reason) == (
        outcome.met,
        outcome.value,
        outcome.stop_reason,
    )
    assert len(row.outcome.finalists) == len(outcome.finalists)


def test_a_search_that_was_stopped_after_any_step_goes_on_to_the_same_end(
    tmp_path: Path, undisturbed: tuple[Run, Outcome, Device]
) -> None:
    """What was measured before the stop is known by then, and the float engine takes another time: neither changes the
    search.
    """
    whole, outcome, everything = undisturbed
    count = len(everything.found)
    assert count >= 6
    for stopped_after in range(count):
        run, first, second = Run(tmp_path / str(stopped_after)), Device(stopped_after), Device()
        with pytest.raises(KeyboardInterrupt):
            search(run, first)
        assert [len(row.steps) for row in read(run).searches] == [stopped_after]
        again = search(run, second, known=first.found, limit=LIMIT * 1.1)
        assert [*first.found, *second.found] == everything.found, "nothing is measured twice"
        assert said(again) == said(outcome)
        assert run.file("loop.json").read_bytes() == whole.file("loop.json").read_bytes()


def test_a_search_may_be_stopped_again_and_again(run: Run, undisturbed: tuple[Run, Outcome, Device]) -> None:
    whole, outcome, everything = undisturbed
    found: list[Verdict] = []
    for _ in everything.found[1:]:
        device = Device(1)
        with pytest.raises(KeyboardInterrupt):
            search(run, device, known=found)
        found += device.found
    assert found == everything.found[:-1]
    assert said(search(run, Device(1), known=found)) == said(outcome)
    assert run.file("loop.json").read_bytes() == whole.file("loop.json").read_bytes()


def test_a_search_that_came_to_its_end_is_never_changed(run: Run) -> None:
    device = Device()
    search(run, device)
    (done,) = read(run).searches
    search(run, Device(), known=device.found[:3])
    first, second = read(run).searches
    assert first == done
    assert len(second.known.observations) + len(second.known.refusals) == 3
    assert second.steps


def taken_up(run: Run, known: Sequence[Verdict] = ()) -> Outcome | None:
    """Return what the search that is taken up has come to."""
    history = Search(run, SPACE, BUDGET, BOARD, LIMIT, known, takes_up=True)
    return history.recalled(looped(history))


def test_a_search_that_is_taken_up_comes_to_the_same_again(run: Run) -> None:
    """Whatever else has been measured since."""
    assert taken_up(run) is None
    outcome = search(run, Device())
    before = run.file("loop.json").read_bytes()
    again = taken_up(run, [replace(each.observation, ratio=9.0) for each in outcome.steps if each.observation])
    assert again is not None
    assert said(again) == said(outcome)
    assert run.file("loop.json").read_bytes() == before


def test_a_search_that_was_overruled_is_not_taken_up(run: Run) -> None:
    settle(run, BUDGET, BOARD, stands=False)
    assert not run.has("loop.json")
    search(run, Device())
    search(run, Device(), budget="latency=0.6x", limit=0.6)
    assert settled(run, BUDGET, BOARD) == (None, 0)
    settle(run, BUDGET, BOARD, stands=False)
    assert [row.stands for row in read(run).searches] == [False, None]
    assert settled(run, BUDGET, BOARD) == (False, 1)
    assert taken_up(run) is None
    outcome = search(run, Device())
    assert settled(run, BUDGET, BOARD) == (None, 1)
    settle(run, BUDGET, BOARD, stands=True)
    assert settled(run, BUDGET, BOARD) == (True, 1)
    again = taken_up(run)
    assert again is not None
    assert said(again) == said(outcome)


def test_a_search_that_would_have_gone_on_is_not_taken_up(run: Run) -> None:
    """As one of engines that are carried to the device, where others are to be measured."""
    outcome = search(run, Device())
    history = Search(run, SPACE, BUDGET, BOARD, LIMIT, ())
    history.add([Step(outcome.steps[0].proposal, Observation(outcome.policy, 0.123, 0.001), None, met=True)])
    assert not ended_early(run.find(LoopFile), BUDGET)
    history.end(replace(outcome, stop_reason=StopReason.EARLY))
    assert ended_early(run.find(LoopFile), BUDGET)
    assert taken_up(run) is None


def test_a_search_that_is_taken_up_needs_no_step(run: Run) -> None:
    history = Search(run, SPACE, BUDGET, BOARD, LIMIT, (), takes_up=True)
    history.begin()
    outcome = replace(looped(history).outcome(), stop_reason=StopReason.OUT_OF_REACH)
    history.end(outcome)
    again = taken_up(run, [BENCH.observation(SPACE.uniform(W8A8))])
    assert again is not None
    assert said(again) == said(outcome)


def test_a_search_without_a_step_leaves_no_trace(run: Run) -> None:
    proposal = Proposal("proposal", SPACE.uniform(W8A8), 0.5, (0.4, 0.6), 3)
    outcome = LatencyLoop(SPACE, [], OneByOne(BENCH.value), Goal(LIMIT, (), {}, Effort())).outcome()
    first = Search(run, SPACE, BUDGET, BOARD, LIMIT, ())
    first.keep([Step(proposal, BENCH.observation(proposal.policy), None, met=True)])
    first.end(outcome)
    before = run.file("loop.json").read_bytes()
    second = Search(run, SPACE, "latency=0.5x", BOARD, 0.5, ())
    second.begin()
    assert len(read(run).searches) == 2
    second.end(outcome)
    assert run.file("loop.json").read_bytes() == before


def test_searches_for_two_budgets_are_kept(run: Run) -> None:
    first, second = Device(), Device()
    search(run, first)
    (done,) = read(run).searches
    search(run, second, known=first.found, budget="latency=0.6x", limit=0.6)
    kept, other = read(run).searches
    assert kept == done
    assert (other.budget, other.limit_ratio) == ("latency=0.6x", 0.6)
    assert len(other.known.observations) + len(other.known.refusals) == len(first.found)
    assert steps_for(read(run), BUDGET) == list(done.steps)
    assert steps_for(read(run), "latency=0.6x") == list(other.steps)
    assert steps_for(read(run), "latency=0.5x") == steps_for(None, BUDGET) == []


def test_searches_on_two_machines_are_kept_apart(run: Run) -> None:
    here, there = Device(), Device()
    search(run, here)
    (done,) = read(run).searches
    search(run, there, machine="another board")
    kept, other = read(run).searches
    assert kept == done
    assert there.found == here.found, "what one machine measured says nothing about another"
    assert not other.known.observations
    assert steps_for(read(run), BUDGET) == list(other.steps)


def test_a_search_in_between_does_not_take_the_place_of_one_that_was_stopped(
    run: Run, undisturbed: tuple[Run, Outcome, Device]
) -> None:
    whole, outcome, everything = undisturbed
    first, between, rest = Device(3), Device(), Device()
    with pytest.raises(KeyboardInterrupt):
        search(run, first)
    search(run, between, machine="another board")
    assert [row.machine for row in read(run).searches] == [BOARD, "another board"]
    assert said(search(run, rest, known=first.found)) == said(outcome)
    assert [*first.found, *rest.found] == everything.found
    other, resumed = read(run).searches
    assert other.machine == "another board"
    assert resumed == read(whole).searches[0]


def test_steps_that_a_device_took_by_itself_are_added_once(run: Run) -> None:
    outcome = search(run, Device())
    seen = outcome.steps[0]
    unlike = Step(seen.proposal, Observation(seen.proposal.policy, 0.123, 0.001), None, met=True)
    added = Search(run, SPACE, BUDGET, BOARD, LIMIT, ())
    added.add(outcome.steps)
    assert len(read(run).searches) == 1
    added.add([seen, unlike])
    added.end(outcome)
    assert [step.measured for step in read(run).searches[1].steps] == [0.123]
    elsewhere = Search(run, SPACE, BUDGET, "another board", LIMIT, ())
    elsewhere.add([seen])
    assert [len(row.steps) for row in read(run).searches] == [len(outcome.steps), 1, 1]


def test_steps_of_a_device_go_behind_those_of_a_search_that_was_stopped(run: Run) -> None:
    device = Device(3)
    with pytest.raises(KeyboardInterrupt):
        search(run, device)
    (stopped,) = read(run).searches
    policy = next(policy for policy in policies(SPACE) if all(policy != each.policy for each in device.found))
    step = Step(Proposal("carried", policy, 0.5, (0.4, 0.6), 3), BENCH.observation(policy), None, met=True)
    Search(run, SPACE, BUDGET, BOARD, LIMIT, device.found).add([step])
    (row,) = read(run).searches
    assert row.steps[:-1] == stopped.steps
    assert row.steps[-1].label == "carried"


def test_a_policy_that_was_measured_twice_has_two_answers_in_their_order(run: Run) -> None:
    policy = next(iter(policies(SPACE)))
    first = Observation(policy, 0.8, 0.01, 1.25)
    second = Observation(policy, 0.6, 0.01, 1.0)
    proposal = Proposal("proposal", policy, 0.5, (0.4, 0.6), 3)
    history = Search(run, SPACE, BUDGET, BOARD, LIMIT, ())
    history.begin()
    history.keep([Step(proposal, each, None, met=each is second) for each in (first, second)])
    asked: list[bool] = []

    def measure(policy: Policy, again: bool) -> Observation:
        asked.append(again)
        return first

    resumed = history.resumed(measure)
    assert [resumed(policy), resumed(policy)] == [first, second]
    resumed(policy)
    other = Search(run, SPACE, "latency=0.6x", BOARD, 0.6, ()).resumed(measure)
    other(policy)
    assert asked == [True, False]


def test_steps_that_the_file_has_are_not_taken_away(run: Run) -> None:
    outcome = search(run, Device())
    history = Search(run, SPACE, BUDGET, BOARD, LIMIT, ())
    before = run.file("loop.json").read_bytes()
    history.keep([])
    assert run.file("loop.json").read_bytes() == before
    history.keep(outcome.steps[:2])
    history.keep(outcome.steps[:1])
    assert [len(row.steps) for row in read(run).searches] == [len(outcome.steps), 2]


def test_a_loss_that_is_decided_on_other_samples_is_another_search(run: Run) -> None:
    def of(data: str) -> Search:
        return Search(run, SPACE, BUDGET, BOARD, LIMIT, (), takes_up=True, decided_on=data * 64)

    first = of("a")
    first.begin()
    first.end(replace(looped(first).outcome(), stop_reason=StopReason.EXHAUSTED))
    assert (again := of("a")).recalled(looped(again)) is not None
    assert (other := of("b")).recalled(looped(other)) is None
