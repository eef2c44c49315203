"""How what softmax gives is best quantised: evenly, by powers of two, or with two steps.

Usage: shares.py [--network digits-vit] [--bits 2,3,4]

All layers and the products of attention are quantised alike (GPTQ, the first input at 8 bits); only the quantiser of
the shares differs. `float` leaves them as they are. `even` is what smpq does. `powers` has 2^0, 2^-1, ... and 0 (log2,
as in FQ-ViT, Lin et al., arXiv 2111.13824). `two steps` splits the integers between small and large values, with the
ratio of the steps of least squared error (twin uniform, PTQ4ViT, Yuan et al., arXiv 2111.12293). The figures are the
mean KL divergence from the float network, and the task's metric in %, on the evaluation data; `alone` quantises nothing
else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from reconstruct_networks import NETWORKS
from reconstruction import Bench
from records import cpu_model, keep
from torch import Tensor

from calib.network.execution import Edits
from calib.tasks import load_task
from smpq.value.divergence import divergence

_SMALLEST = 1e-9
_RATIOS = range(1, 9)


def powers(tensor: Tensor, bits: int) -> Tensor:
    """Round to powers of two, and to 0 what is below the smallest."""
    exponent = torch.round(-torch.log2(tensor.clamp(min=_SMALLEST)))
    return torch.where(exponent > 2**bits - 1, torch.zeros_like(tensor), 2.0**-exponent)


def two_steps(tensor: Tensor, bits: int, ratio: int) -> Tensor:
    """Round values that half of the integers cover with a step 2^ratio times smaller, the others with the usual one."""
    integers = 2 ** (bits - 1)
    large = 1 / (integers - 1)
    small = large / 2**ratio
    fine, coarse = ((tensor / step).round().clamp(0, integers - 1) * step for step in (small, large))
    return torch.where(tensor < integers * small, fine, coarse)


def best_two_steps(sample: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
    """Return the pair of steps of least squared error."""
    ratio = min(_RATIOS, key=lambda each: float((two_steps(sample, bits, each) - sample).square().mean()))
    return partial(two_steps, bits=bits, ratio=ratio)


def _values(bench: Bench, tensor: str) -> Tensor:
    """Return what a tensor is on the first calibration batch."""
    seen: list[Tensor] = []
    inputs = bench.batches[0].inputs
    bench.traced.run(inputs, observe=lambda name, made: seen.append(made) if name == tensor else None)
    return seen[0]


def judged(bench: Bench, edits: Edits) -> dict[str, float]:
    """Return the KL divergence and the metric."""
    far, near = [], []
    for batch in bench.task.evaluation() or ():
        output = bench.traced.run(batch.inputs, edits)
        far += divergence(bench.traced.run(batch.inputs), output).tolist()
        near += bench.task.metric(output, batch.target).tolist()  # type: ignore[attr-defined]
    return {"kl": round(sum(far) / len(far), 5), "metric": round(100 * sum(near) / len(near), 2)}


def rows_of(bench: Bench, bits: int, image_bits: int | None) -> list[dict[str, object]]:
    """Return one row for each quantiser."""
    fake = bench.fake()
    edits = fake.edits(fake.plan(bench.uniform(f"w{bits}a{bits}", image_bits)))
    places = [place for each in bench.attention for place in each.operands if place[0] in each.shares]
    found: list[dict[str, object]] = []
    for name in ("float", "even", "powers", "two steps"):
        chosen = {
            place: {
                "float": lambda tensor: tensor,
                "even": edits.edges[place],
                "powers": partial(powers, bits=bits),
                "two steps": best_two_steps(_values(bench, place[0]), bits),
            }[name]
            for place in places
        }
        whole = Edits(edits.sources, {**edits.edges, **chosen}, edits.parameters)
        found.append(
            {"bits": bits, "shares": name, **judged(bench, whole), "alone": judged(bench, Edits(edges=chosen))}
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="digits-vit")
    parser.add_argument("--bits", default="2,3,4")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = NETWORKS[options.network]
    bench = Bench(load_task(network.task, None, None), attention=True)
    rows = [row for bits in options.bits.split(",") for row in rows_of(bench, int(bits), network.image_bits)]
    keep("shares", "python benchmarks/shares.py", [], rows, network=options.network, cpu=cpu_model())
    return 0


if __name__ == "__main__":
    sys.exit(main())
