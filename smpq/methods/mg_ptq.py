"""MG-PTQ: the same average for every layer, and inside of a layer the widths that a graph network chooses."""

from __future__ import annotations

from calib.formats.mixed_widths import MixedWidths
from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem
from smpq.methods.same_average import bits_taken_away, same_average


@method(
    "mg-ptq",
    paper="MG-PTQ, ICASSP 2025 (arXiv 2501.18154)",
    cost="none: second moments of the calibration data; 200 steps of a small network for each layer and average",
    decides="groups of columns",
    allocate=same_average,
    searched=False,
    latency=False,
)
def mg_ptq(problem: SearchProblem) -> Objective:
    """More bits for the columns that a graph network over a layer's columns chooses; all layers with the same average.

    Give averages as `--formats wm2a16b128,wm2.5a16b128`, and `--rounding gptq --widths graph`: the allocation is the
    width rule `graph` (`calib.rounding.widths.graph`, which says what is ours: the authors' code was not published).
    This method takes the largest average within the budget for all layers; its score is the bits that a format takes
    away, by parameters. Other methods choose an average for each layer.
    """
    return bits_taken_away(problem, MixedWidths, rounding="gptq", widths="graph")
