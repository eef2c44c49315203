"""CMPQ: the same average for every layer, and inside of a layer more bits for channels with large activations."""

from __future__ import annotations

from calib.formats.tables import Tables
from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem
from smpq.methods.same_average import bits_taken_away, same_average


@method(
    "cmpq",
    paper="CMPQ, arXiv 2410.13056",
    cost="none: second moments of the calibration data",
    decides="input channels",
    allocate=same_average,
    searched=False,
    latency=False,
)
def cmpq(problem: SearchProblem) -> Objective:
    """More bits for the input channels of a layer with large activations; all layers with the same average.

    Give averages as `--formats wc2a16,wc2.25a16,wc2.5a16`. Such a format has a table of numbers for each input channel,
    from k-means, and keeps two kinds of outliers in 16 bits (`calib.rounding.tables`, which says what is ours: the
    authors' code was not published). This method takes the largest average within the budget for all layers; its score
    is the bits that a format takes away, by parameters. Other methods choose an average for each layer.
    """
    return bits_taken_away(problem, Tables)
