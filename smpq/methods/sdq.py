"""SDQ: training in which each layer has one of two neighbouring widths by chance, until it is sure of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.methods.base import Need, method
from smpq.methods.problem import SearchProblem, Solution
from smpq.methods.trained import trained

if TYPE_CHECKING:
    from smpq.training.bits.settings import SdqSettings


@method(
    "sdq",
    paper="Huang et al. ICML 2022 (arXiv 2206.04459)",
    cost="8 epochs of training, the first three tenths of which find the bits",
    needs=(Need.TRAINING_DATA, Need.GRADIENTS),
    epochs=8,
)
def sdq(problem: SearchProblem, settings: SdqSettings | None = None) -> Solution:
    """Training that draws each layer's width between two neighbours and learns the odds, until the budget is met.

    From the paper: a differentiable bit-width parameter for each layer and width is the probability of that width
    against the next one down; Gumbel's softmax lets the gradient through the draw; a quantisation error regulariser
    keeps bits where they matter, and layers with few parameters keep more. Phase 2 trains the weights of the scheme,
    taught by the float model, with the entropy-aware bin regularisation of eq. 10, whose weight 0.1 is the paper's
    best. Activations are not searched.

    The authors published no code, and learning rates, thresholds, the schedule of the temperature and the way to a
    target average are not known. Chosen: the log-odds follow the natural gradient, that by the probability itself,
    which does not vanish where a layer is sure; a layer falls below a probability of 0.01, and starts at the next width
    with the step that calibration found for it; the temperature falls from 1 to 0.1 over the search; the float model
    teaches in both phases. Steps are learned for each channel (LSQ) in place of normalising the weights, so of eq. 10
    only the distances from the middles of the bins are left, and not the even filling of bins.

    Ours: the pressure on the bits is steered to the budget as `bsq` steers alpha, the widths that are still missing at
    the end of the search are taken where the error grows least for what it saves, and what is left of the budget goes
    back to the layers that fell last.
    """
    from smpq.training.bits.choice import WidthChoice
    from smpq.training.bits.settings import SdqSettings

    own = settings or SdqSettings()
    calibration, seed = problem.fake_quantizer.calibration, problem.seed
    return trained(problem, lambda rungs: WidthChoice(rungs, own, calibration, seed), WidthChoice, own)
