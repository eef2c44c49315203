"""SliM-LLM: the same average for every layer, and inside of a layer more bits for the salient columns."""

from __future__ import annotations

from calib.formats.mixed_widths import MixedWidths
from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem
from smpq.methods.same_average import bits_taken_away, same_average


@method(
    "slim-llm",
    paper="SliM-LLM, Huang et al. ICML 2025 (arXiv 2405.14917)",
    cost="none: second moments of the calibration data",
    decides="groups of columns",
    allocate=same_average,
    searched=False,
    latency=False,
)
def slim_llm(problem: SearchProblem) -> Objective:
    """More bits for the columns of a layer that are salient; all layers with the same average.

    Give averages as `--formats wm2a16b128,wm2.5a16b128`, and `--rounding slim --widths slim`: the paper's allocation is
    the width rule `slim` (`calib.rounding.widths.slim`), its calibration of ranges and its GPTQ the rounding `slim`.
    This method takes the largest average within the budget for all layers, as the paper does; its score is the bits
    that a format takes away, by parameters. Other methods choose an average for each layer.

    On a Llama of 260,000 parameters (`benchmarks/results/language.json`) it beats GPTQ on the same ranges at 2 bits,
    4.28 nats a token against 4.51, but not GPTQ whose ranges are searched, 3.37 (one seed): the paper's ranges are
    within a tenth of those of the weights, which at 2 bits want to be clipped. Nor do its widths help the latter, 3.59:
    30 of 35 layers have 64 inputs, two blocks of 32, and no block can spare one of two bits.
    """
    return bits_taken_away(problem, MixedWidths, rounding="slim", widths="slim")
