"""CPQ with DropBits: training in which weights cluster on a learned grid whose highest bits are dropped by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.methods.base import Need, method
from smpq.methods.problem import SearchProblem, Solution
from smpq.methods.trained import trained

if TYPE_CHECKING:
    from smpq.training.bits.settings import CpqSettings


@method(
    "cpq",
    paper="Lee et al. ICCV 2021 (arXiv 2109.02100)",
    cost="8 epochs of training, the first three tenths of which find the bits",
    needs=(Need.TRAINING_DATA, Need.GRADIENTS),
    epochs=8,
)
def cpq(problem: SearchProblem, settings: CpqSettings | None = None) -> Solution:
    """Training on a learned grid that weights cluster on, whose highest bits are dropped by chance (DropBits).

    From the paper: a weight falls on a value of its grid with the probability that logistic noise takes it there;
    forward it is the most probable value, and the gradient is that of the probabilities, so that weights gather on the
    grid. DropBits multiplies what the highest bit adds to the grid, at both ends alike, by a mask of the hard concrete
    distribution; a penalty on the probability that a mask is not zero learns a width for each layer. Activations are
    not searched.

    The paper's text and code were not at hand. Its multi-class straight-through estimator passes the gradient to the
    most probable value alone; chosen instead is the gradient of the expected value over the two nearest borders, which
    never has the wrong sign. Noise is a third of a step and not learned (0.15 of a step was no better: 87.20 % against
    87.32 after one epoch of ResNet-20 at 2.9 bits). Only the highest bit that is left has a mask, one for each group of
    layers, with which DropBits stops where the bits are found. Activations have steps that are learned as in LSQ, and
    the float model teaches.

    Ours: the log-odds follow the natural gradient, and the penalty is steered to the budget, as in `sdq`; what is
    missing at the end of the search is taken where the error grows least for what it saves, and what is left of the
    budget goes back to the layers that fell last.
    """
    from smpq.training.bits.drop import BitDrop
    from smpq.training.bits.settings import CpqSettings

    own, seed = settings or CpqSettings(), problem.seed
    return trained(problem, lambda rungs: BitDrop(rungs, own, seed), BitDrop, own)
