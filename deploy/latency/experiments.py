"""What a loop measures before its search proposes anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from calib.formats.format import Format
from deploy.latency.observed import Refusal
from deploy.latency.state import LoopState
from deploy.latency.suspects import FormatOfGroup, halved, suspects
from smpq.problem.policy import Policy, Space


def offered(policy: Policy, space: Space) -> bool:
    """Whether a space offers all formats of a policy."""
    return all(policy[group.name] in space.formats[group.name] for group in space.groups)


class Experiments:
    """Designed policies, which the latency model is fitted to, and what searches the cause of a refusal."""

    def __init__(
        self, designed: Sequence[Policy], space: Space, doubtful: Collection[tuple[str, Format]] = frozenset()
    ) -> None:
        """`space` is the whole one; over formats that are `doubtful` the runtime may refuse an engine."""
        self._designed = designed
        self._space = space
        self._doubtful = frozenset(doubtful)

    def following(self, state: LoopState, space: Space) -> list[tuple[str, Policy]]:
        """Return what to measure next, each with its label; `space` is what is left of the whole one.

        A measurement with doubts is enough for the latency model, which knows its error.
        """
        narrowing = self._narrowing(state, space)
        waiting = [each for each in self._designed if each.key() not in state.measured and not state.refused(each)]
        designed = [("experiment", each) for each in waiting if offered(each, space) and each != narrowing]
        return [("narrowing", narrowing), *designed] if narrowing is not None else designed

    def to_blame(self, state: LoopState, space: Space) -> list[tuple[FormatOfGroup, ...]]:
        """Return what refusals that blame nothing have come down to: a single suspect, or doubtful ones."""
        return [found for found, _ in self._accused(state, space) if len(found) == 1 or set(found) & self._doubtful]

    def _narrowing(self, state: LoopState, space: Space) -> Policy | None:
        """Return the policy that halves the suspects of the refusal with the fewest; None when that teaches nothing."""
        reference = space.uniform(space.reference)
        for accused, refusal in sorted(self._accused(state, space), key=lambda each: len(each[0])):
            policy = halved(refusal.policy, accused, space)
            if policy not in (None, reference) and state.is_new(policy) and not state.refused(policy):
                return policy
        return None

    def _accused(self, state: LoopState, space: Space) -> list[tuple[tuple[FormatOfGroup, ...], Refusal]]:
        """Return the suspects of each refusal that blames nothing and whose formats are still offered."""
        built = [observation.policy for observation in state.observed.values()]
        nameless = [refusal for refusal in state.refusals if not refusal.blamed and offered(refusal.policy, space)]
        return [(suspects(refusal.policy, built, self._space, self._doubtful), refusal) for refusal in nameless]
