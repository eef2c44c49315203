"""KAQ: training in which activations keep their distribution when they are rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.methods.base import Need, method
from smpq.methods.problem import SearchProblem, Solution
from smpq.methods.trained import trained

if TYPE_CHECKING:
    from smpq.training.bits.settings import KaqSettings


@method(
    "kaq",
    paper="Deep Unfolding with Kernel-based Quantization in MIMO Detection, ICML 2025 ML4Wireless (arXiv 2505.12736)",
    cost="8 epochs of training",
    needs=(Need.TRAINING_DATA, Need.GRADIENTS),
    epochs=8,
)
def kaq(problem: SearchProblem, settings: KaqSettings | None = None) -> Solution:
    """Training at one width for all layers that keeps the distributions of activations through their rounding.

    From the abstract and a review of the paper: to the task's loss is added, for each quantised activation, the maximum
    mean discrepancy between its values before and after rounding, with a Gaussian kernel whose bandwidth is learned;
    the weight 0.05 is what the paper begins with. It was made for unfolded MIMO detectors (`examples/mimo.py` is
    one), and adjusts the steps of activations to the channel.

    No code was published, and these are not known, so chosen: the discrepancy is that of 128 single values of each
    tensor, spread over the batch, which is what one step for the whole tensor rounds. A bandwidth that lowered the
    discrepancy would grow without end; it maximises the likelihood of the values before rounding under the kernel
    density of those after it, each without its own. The alignment moves steps alone: where its gradient passed on to
    the layers before, they lost more than they gained (`benchmarks/mimo.py`). Steps are learned as in LSQ, of weights
    for each channel, of activations for each tensor, of any number of bits. The float model teaches besides.

    Ours: it finds no bits. Layers get the widest format that all of them may have within the budget, activations before
    weights. Steps that follow the channel are a matter of the network, not of its quantisers: it divides what a layer
    reads by a gain that it looks up, and multiplies the result by it. That is a step for each bucket of channels, in
    one engine whose steps are constant.
    """
    from smpq.training.bits.alignment import Alignment
    from smpq.training.bits.settings import KaqSettings

    own = settings or KaqSettings()
    return trained(problem, lambda rungs: Alignment(rungs, own), Alignment, own)
