"""BSQ: training in which a group lasso empties bit planes, until the network is within its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.methods.base import Need, method
from smpq.methods.problem import SearchProblem, Solution
from smpq.methods.trained import trained

if TYPE_CHECKING:
    from smpq.training.bits.settings import BsqSettings


@method(
    "bsq",
    paper="Yang et al. ICLR 2021 (arXiv 2102.10462)",
    cost="8 epochs of training, the first three tenths of which find the bits",
    needs=(Need.TRAINING_DATA, Need.GRADIENTS),
    epochs=8,
)
def bsq(problem: SearchProblem, settings: BsqSettings | None = None) -> Solution:
    """Training that empties bit planes by a group lasso, and strips them until the budget is met.

    From the paper and the authors' code: all layers start at the widest width; the loss has a group lasso over bit
    planes, weighted by the share of the memory that a layer has now; at regular intervals layers are requantised and
    lose planes that are empty, at either end; then the scheme stays and its weights are trained on. Activations are not
    searched.

    Otherwise than there: the authors keep two floats for each bit of a weight, 16 times its memory at 8 bits. As in MSQ
    (arXiv 2507.22349) the weight stays one float here, and the lowest planes that are left are what rounding to the
    next width down leaves of it. Their norm is over a group of layers that share a format, each channel in units of its
    range, and it is shortened by the proximal step of the lasso after each step of the optimiser. At a new width the
    range of each channel shrinks, by half at most, to where the next width down fits best: this stands for stripping at
    the upper end. A plane counts as empty when at most 1 % of its bits are set, as in MSQ; BSQ asks for none. Widths
    count the sign, which BSQ does not count. Steps are learned for each channel (LSQ), and the float model teaches.

    Ours: alpha is not given but steered. It grows while the cost is behind a course that reaches the limit at nine
    tenths of the search, and falls while it is ahead. Where planes are not empty at the end of the search, those with
    the fewest set bits for what they save are stripped. What is left of the budget goes back to the planes that were
    stripped last. With a budget on bit operations the weights of the lasso are shares of these.
    """
    from smpq.training.bits.planes import PlaneLasso
    from smpq.training.bits.settings import BsqSettings

    own, rate = settings or BsqSettings(), problem.training.learning_rate
    return trained(problem, lambda rungs: PlaneLasso(rungs, own, rate), PlaneLasso, own)
