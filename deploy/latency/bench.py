"""Engines timed on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from calib.errors import UserError
from calib.sizes import InputSizes, resized
from calib.task import Batch
from deploy.devices.base import Announce, Candidate, Device, Experiment, Result, silent
from deploy.latency.candidates import Candidates
from deploy.latency.observations import Observations
from deploy.latency.observed import Observation, Refusal
from deploy.latency.pooled import pooled
from deploy.runner.protocol import Protocol
from deploy.runner.state import QUIET
from smpq.problem.budget import Limit
from smpq.problem.policy import Policy

QUICK = Protocol()
THOROUGH = Protocol(rounds=41, round_ms=15.0)
FINAL = replace(THOROUGH, singles=1000)
_MOST_TURNS = 3
_NEAR = 0.03
"""A ratio this near to the limit, relatively, may fall on either side of it."""

Known = Callable[[Experiment], list[Result]]
"""Returns the results of an experiment that are known, as `Device.known` does."""


@dataclass(frozen=True)
class Conditions:
    """What all engines of a run are timed with. `inputs` names the inputs of the model, and `batches` are the samples
    that they are given, in their usual `sizes`.

    `batch` is the usual batch size, `fingerprint` names model and data, and `label` is a line for people.
    """

    runtime: str
    inputs: tuple[str, ...]
    batches: Sequence[Batch]
    sizes: InputSizes
    batch: int
    seed: int
    fingerprint: str
    label: str


class Bench:
    """Has policies timed on a device, each interleaved with the float engine."""

    def __init__(
        self,
        device: Device,
        conditions: Conditions,
        candidates: Candidates,
        observations: Observations,
        announce: Announce = silent,
    ) -> None:
        """`announce` takes what the device says meanwhile."""
        self._device, self._conditions = device, conditions
        self._candidates, self._observations = candidates, observations
        self._announce = announce

    @property
    def machine(self) -> str:
        """Name the machine that engines are timed on."""
        return self._device.describe()

    def observe(self, policy: Policy, limit: float | None = None, *, again: bool = False) -> Observation | Refusal:
        """Time one policy, and again thoroughly if its ratio is near `limit`, or its interval does not tell on which
        side of it, or it was timed before (`again`), which nothing that is known of it answers. What came of it is
        added to the observations.
        """
        candidate = self._candidates.candidate(policy)
        (result,) = self.time([candidate], THOROUGH if again else None, turn=int(again))
        if limit is not None and not again and _undecided(result, limit):
            (result,) = self.time([candidate], THOROUGH)
        return self._observations.keep([(policy, result)], self.machine)[0]

    def time(
        self,
        candidates: Sequence[Candidate],
        protocol: Protocol | None = None,
        batch: int | None = None,
        *,
        turn: int = 0,
    ) -> list[Result]:
        """Time candidates, quickly unless said otherwise, at the usual batch size or another one; returns their
        results in order. What was timed before in the same `turn` is not timed again.
        """
        return self._device.measure(self.experiment(candidates, protocol, batch, turn=turn), self._announce)

    def time_finally(
        self, candidate: Candidate, batch: int | None = None, limit: Limit | None = None, *, first: int = 0
    ) -> Result:
        """Time an engine as thoroughly as any, and up to `_MOST_TURNS` times in all where its ratio is within `limit`
        and its interval reaches beyond; twice where other work on the machine leaves open on which side it is. There
        the measurements that a search has of its engines count too: it may have been quieter then. Turns are counted
        from `first`. UserError when it cannot be timed.
        """
        found: list[Result] = []
        for turn in range(_MOST_TURNS):
            found += self.time([candidate], FINAL, batch, turn=first + turn)
            result = self._pooled(found)
            if _disturbed(result, limit):
                result = self._pooled([*self._observed(candidate, self._device.known, batch), *found])
            disturbed = _disturbed(result, limit)
            if not (_just_within(result, limit) or disturbed) or (turn > 0 and disturbed):
                break
        return result

    def fresh_turn(self, candidate: Candidate, batch: int | None = None) -> int:
        """Return the first turn in which `time_finally` has not timed an engine yet."""
        known = self._device.known
        return next(n for n in count() if not known(self.experiment([candidate], FINAL, batch, turn=n)))

    def recalled(self, candidate: Candidate, known: Known) -> Result | None:
        """Return what `observe`, or a bundle, has measured of an engine, taken together; None where that is nothing."""
        found = [result for result in self._observed(candidate, known) if result.failed is None]
        return self._pooled(found) if found else None

    def _observed(self, candidate: Candidate, known: Known, batch: int | None = None) -> list[Result]:
        asked = ((QUICK, 0), (THOROUGH, 0), (THOROUGH, 1))
        experiments = [self.experiment([candidate], protocol, batch, turn=turn) for protocol, turn in asked]
        return [result for experiment in experiments for result in known(experiment)]

    def _pooled(self, found: Sequence[Result]) -> Result:
        failed = next((each.failed for each in found if each.failed is not None), None)
        if failed is not None:
            raise UserError(f"the engine cannot be timed: {failed}")
        return pooled(found, self._conditions.seed)

    def experiment(
        self,
        candidates: Sequence[Candidate],
        protocol: Protocol | None = None,
        batch: int | None = None,
        label: str = "",
        *,
        turn: int = 0,
    ) -> Experiment:
        """Return what a device needs to time the candidates against the float engine; it times them anew in another
        `turn`.
        """
        conditions = self._conditions
        batch = batch or conditions.batch
        return Experiment(
            runtime=conditions.runtime,
            float_=self._candidates.float_candidate(batch),
            candidates=tuple(candidates),
            inputs=self._inputs(batch),
            batch=batch,
            protocol=protocol or QUICK,
            seed=conditions.seed + turn,
            fingerprint=conditions.fingerprint,
            label=label or conditions.label,
        )

    def float_ms(self) -> float:
        """Return what the float engine takes for one batch on the device, in milliseconds."""
        (result,) = self.time([self._candidates.float_candidate()])
        if result.float_ms is None:
            raise UserError(f"the float engine cannot be timed: {result.failed}")
        return result.float_ms

    def _inputs(self, batch: int) -> dict[str, np.ndarray]:
        """Return one batch of calibration samples by input name, repeated when there are fewer, in the usual sizes."""
        conditions, found = self._conditions, list[Batch]()
        while sum(len(each.inputs[0]) for each in found) < batch:
            found.append(conditions.batches[len(found) % len(conditions.batches)])
        return {
            name: np.concatenate([resized(each.inputs[index], shape).numpy() for each in found])[:batch]
            for index, (name, shape) in enumerate(zip(conditions.inputs, conditions.sizes.usual, strict=True))
        }


def _just_within(result: Result, limit: Limit | None) -> bool:
    if limit is None or result.ratio is None or result.ratio_interval is None or result.float_ms is None:
        return False
    return result.ratio <= limit.ratio(result.float_ms) < result.ratio_interval[1]


def _disturbed(result: Result, limit: Limit | None) -> bool:
    if limit is None or result.slowdown is None or result.ratio_interval is None or result.float_ms is None:
        return False
    low, high = result.ratio_interval
    return result.slowdown > 1 + QUIET and low <= limit.ratio(result.float_ms) < high


def _undecided(result: Result, limit: float) -> bool:
    if result.ratio is None or result.ratio_interval is None:
        return False
    low, high = result.ratio_interval
    return low <= limit <= high or abs(result.ratio / limit - 1) < _NEAR
