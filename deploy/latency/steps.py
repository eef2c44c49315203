"""What the closed loop is asked, its steps, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploy.latency.finalists import Finalist
from deploy.latency.model import LatencyModel
from deploy.latency.observed import Observation, Refusal
from smpq.problem.policy import Policy
from smpq.solve.allocate import Ceiling
from smpq.solve.allocate import Values as Marginals
from smpq.solve.effort import Effort
from smpq.value.evaluate import ValueFunction


class StopReason:
    """Why a loop ended."""

    EARLY = "stopped early"
    """It would have gone on."""
    COUNT = "as many engines are measured as may be"
    OUT_OF_REACH = "the limit is out of reach"
    EXHAUSTED = "no other policy within the limit is likely to be better"
    SUFFICES = "a policy within the limit loses nothing that is noticed"
    FASTEST = "no faster policy that loses as little is likely"
    COMPLETE = "no gap of the curve has another engine in it"


@dataclass(frozen=True)
class Goal:
    """What is searched: a limit on the ratio to the float engine, ceilings on other costs, scores to start from, and
    the effort. `folds` is the value on parts of its samples, for comparing many policies (`smpq.solve.racing`).
    `enough` says when nobody waits for a better answer any longer. `unnoticed` is a gain in value that nobody notices.
    """

    limit: float
    ceilings: Sequence[Ceiling]
    starts: dict[str, Marginals]
    effort: Effort
    folds: Sequence[ValueFunction] = ()
    enough: Callable[[], bool] = lambda: False
    unnoticed: float = 0.0


@dataclass(frozen=True)
class Proposal:
    """A policy to measure next, and why (`label`). The model predicts its ratio to the float engine with a 95 %
    interval.

    `predicted_from` counts the measured engines that the model was fitted to, without the float engine. `gain` is what
    is expected of it, as a share of what the best policy so far loses; None where that is not why it is asked for.
    """

    label: str
    policy: Policy
    predicted: float
    interval: tuple[float, float]
    predicted_from: int
    gain: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Step:
    """One engine of the loop: what was predicted for it, and what was observed. `observation` is None when it did not
    build, `refusal` when it did.
    """

    proposal: Proposal
    observation: Observation | None
    refusal: Refusal | None
    met: bool

    def in_words(self) -> str:
        """Say what was measured, what was predicted, and what was hoped for."""
        found, gain = self.observation, self.proposal.gain
        reason = self.refusal.reason if self.refusal is not None else ""
        result = f"{found.ratio:.3f}x of float" if found is not None else f"does not build: {reason}"
        hoped = f", expected to gain {gain:.0%} of what is lost" if gain is not None else ""
        return f"{result}, predicted {self.proposal.predicted:.3f}{hoped}"


def step_of(proposal: Proposal, found: Observation | Refusal, limit: float) -> Step:
    """Return the step that a proposal came to, whose engine may take `limit` of the float engine's time."""
    if isinstance(found, Refusal):
        return Step(proposal, None, found, met=False)
    return Step(proposal, found, None, found.upper <= limit)


@dataclass(frozen=True)
class Outcome:
    """The best policy whose measured latency meets the limit, or the fastest one found when none does.

    `finalists` are all policies that meet the limit, the best one first.
    """

    policy: Policy
    value: float
    observation: Observation
    met: bool
    stop_reason: str
    steps: tuple[Step, ...]
    model: LatencyModel
    finalists: tuple[Finalist, ...] = ()


@dataclass(frozen=True)
class LoopSettings:
    """`measurements`: most engines that are built and measured. `designed`: how many of them are experiments that are
    chosen beforehand.
    """

    measurements: int = 10
    designed: int = 5
    seed: int = 0
