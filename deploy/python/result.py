"""What `optimize` returns."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calib.sizes import InputSizes
from calib.task import Batch
from deploy.files.report import LatencyPart, ReportFile
from deploy.files.verification import StageName, StageRow
from deploy.python.arguments import as_tensor
from deploy.report.page import summary_lines

Call = Callable[..., Any]
_EITHER_WAY = inspect.Parameter.POSITIONAL_OR_KEYWORD


class Computed(nn.Module):
    """What is called as the model is: the model with the formats of the plan, computed in float, or an engine."""

    def __init__(self, compute: Callable[[Batch], Any], names: Sequence[str], sizes: InputSizes) -> None:
        """`names` are those of the inputs, `sizes` those that the trace holds for."""
        super().__init__()
        self._compute, self._sizes = compute, sizes
        self._inputs = inspect.Signature([inspect.Parameter(name, _EITHER_WAY) for name in names])

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the model returns, for tensors or arrays. TypeError where these are not its inputs; UserError
        where they have sizes that neither calibration had nor `shapes` stated.
        """
        given = tuple(torch.as_tensor(as_tensor(each)).detach() for each in self._inputs.bind(*inputs, **named).args)
        self._sizes.check(given, "what is given")
        return self._compute(Batch(given, None))


@dataclass(frozen=True)
class Result:
    """The best engine found, and its proof.

    `path` is the run directory, `report` all that is known (`report.json`). `module` is the fake-quantised model.
    `engine` calls the engine with tensors or arrays and returns what the model returns; None where it does not run
    here, as `engine_note` says. Both take the inputs of the batches that were given, by position in the order of
    `forward`, or by name.
    """

    path: Path
    report: ReportFile
    module: nn.Module
    engine: Call | None
    engine_note: str | None

    @property
    def met(self) -> bool:
        """Whether the budget is met."""
        return self.report.met

    @property
    def policy(self) -> Mapping[str, str]:
        """The format of each layer, by its path in the model."""
        return self.report.policy

    @property
    def latency(self) -> LatencyPart | None:
        """The measured engine: `ratio` to the float engine with its `interval`; None where it was not timed."""
        return self.report.latency

    @property
    def accuracy(self) -> Mapping[StageName, StageRow]:
        """The metric at each stage from the module to the engine, each with its interval."""
        return self.report.verification.stages if self.report.verification is not None else {}

    def __repr__(self) -> str:
        """Return the answers of the report."""
        return "\n".join([*summary_lines(self.report, self.path), f"run: {self.path}"])

    def _repr_html_(self) -> str:
        """Return the report for a notebook, in a frame of its own so that no style leaks."""
        page = (self.path / "report.html").read_text(encoding="utf-8")
        return f'<iframe srcdoc="{html.escape(page)}" style="width: 100%; height: 40em; border: 0"></iframe>'
