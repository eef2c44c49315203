"""Engines of policies, each measured once; a file keeps what was measured."""

import json
from pathlib import Path

from deploy.latency.bench import THOROUGH
from deploy.latency.observed import Observation, Refusal, observation_of
from deploy.run.workspace import Workspace
from smpq.problem.policy import Policy


class Engines:
    """Measured engines, each once as the loop does, and again where that is asked for."""

    def __init__(self, workspace: Workspace, file: Path) -> None:
        self._bench, self._candidates, self._file = workspace.bench, workspace.candidates, file
        reference = workspace.space.uniform(workspace.space.reference)
        self.known: dict[str, Observation | Refusal] = {}
        self._kept: dict[str, list] = json.loads(file.read_text()) if file.is_file() else {}
        self._reference = Observation(reference, 1.0, 0.0)

    def observe(self, policy: Policy) -> Observation | Refusal:
        if policy == self._reference.policy:
            return self._reference
        key = policy.key()
        if key not in self.known and key in self._kept:
            self.known[key] = Observation(policy, *self._kept[key])
        if key not in self.known:
            found = self.known[key] = self._bench.observe(policy)
            if isinstance(found, Observation):
                self._keep(key, [found.ratio, found.standard_error])
        return self.known[key]

    def again(self, policy: Policy) -> float:
        """Return the ratio by a thorough measurement of its own."""
        key = f"again {policy.key()}"
        if policy == self._reference.policy:
            return 1.0
        if key not in self._kept:
            (result,) = self._bench.time([self._candidates.candidate(policy)], THOROUGH)
            self._keep(key, [observation_of(policy, result).ratio])
        return self._kept[key][0]

    def _keep(self, key: str, entry: list[float]) -> None:
        self._kept[key] = entry
        self._file.write_text(json.dumps(self._kept))

    def fastest(self) -> Policy:
        found = [each for each in self.known.values() if isinstance(each, Observation)]
        return min(found, key=lambda each: each.ratio).policy
