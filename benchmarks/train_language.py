"""Trains the byte model of `examples/shakespeare.py` once and keeps its weights.

Usage: train_language.py TEXT WEIGHTS.safetensors [--steps 1000] [--float32] [--out-early EARLY.safetensors]

AdamW on random pieces of the text; the learning rate rises at the beginning and falls to a tenth. Products in bfloat16
take two thirds of the time of float32 (CPU with AVX512-BF16, one thread: 0.87 and 1.27 s a step of 4,096 bytes). A file
that is there is kept: nothing is trained. Beside it lies a checkpoint of the last 100 steps until the file is complete,
from which a killed training goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from calib.errors import UserError
from calib.files.storage import write_bytes
from examples.llama import Llama
from examples.shakespeare import SIZES, read

LEARNING_RATE, LOWEST, WARM_UP = 2e-3, 0.1, 100
WEIGHT_DECAY = 0.1
ROWS = 16
KEPT_EVERY = 100
SEED = 0


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate: up in a line, down in half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    share = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * share))


def rows_of(text: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the pieces `[rows, context]` of a step, and the byte behind each of theirs."""
    source = torch.Generator().manual_seed(SEED + step)
    starts = torch.randint(len(text) - SIZES.context, (ROWS,), generator=source)
    pieces = torch.stack([text[start : start + SIZES.context + 1] for start in starts]).long()
    return pieces[:, :-1], pieces[:, 1:]


def nats(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a byte."""
    return functional.cross_entropy(network(inputs).float().flatten(0, 1), targets.flatten())


def train(path: Path, out: Path, early: Path | None, steps: int, *, bfloat16: bool) -> None:
    """Train and write the weights to `out`; what a checkpoint beside it holds is not done again."""
    torch.manual_seed(SEED)
    text = torch.frombuffer(bytearray(read(path)[0]), dtype=torch.uint8)
    network = Llama(SIZES).train()
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
    decayed = [each for each in network.parameters() if each.dim() > 1]
    others = [each for each in network.parameters() if each.dim() == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    checkpoint, begun = out.with_suffix(".checkpoint"), 0
    parts = {"network": network, "optimizer": optimizer}
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)  # noqa: TID251 - our own, tensors alone
        begun = kept.pop("steps")
        for name, state in kept.items():
            parts[name].load_state_dict(state)
    start, losses = time.process_time(), []
    for step in range(begun, steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate(step, steps)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = nats(network, *rows_of(text, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % KEPT_EVERY == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            with NamedTemporaryFile(dir=out.parent, delete=False) as stream:
                torch.save({"steps": step + 1, **states}, stream)
            Path(stream.name).replace(checkpoint)
            if early:
                write_bytes(early, save(_weights(network)))
            done = f"{sum(losses) / len(losses):.3f} nats, {time.process_time() - start:.0f} CPU s"
            print(f"step {step + 1} of {steps}: {done}", flush=True)
            losses.clear()
    write_bytes(out, save(_weights(network)))
    checkpoint.unlink(missing_ok=True)


def held_out(path: Path, weights: Path) -> float:
    """Return the nats per byte of the held-out text, in pieces of the context."""
    from safetensors.torch import load_file

    network = Llama(SIZES).eval()
    network.load_state_dict(load_file(weights))
    text = torch.frombuffer(bytearray(read(path)[1]), dtype=torch.uint8).long()
    with torch.no_grad():
        found = [
            (float(nats(network, piece[None, :-1], piece[None, 1:])), len(piece) - 1)
            for piece in (text[start : start + SIZES.context] for start in range(0, len(text), SIZES.context))
            if len(piece) > 1
        ]
    return sum(each * count for each, count in found) / sum(count for _, count in found)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def main() -> int:
    """Train where there is no file, and say what it is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--out-early", type=Path, help="weights of the last checkpoint, to look at meanwhile")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if not options.weights.exists():
            train(options.text, options.weights, options.out_early, options.steps, bfloat16=not options.float32)
        print(f"{options.weights}: {held_out(options.text, options.weights):.4f} nats per byte")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
