"""Trains the network of the task `cifar10-vit` once and keeps its weights.

Usage: train_cifar10_vit.py CIFAR10 WEIGHTS.safetensors [--epochs 10] [--device cpu] [--bfloat16]

AdamW, the learning rate rising and falling once, images cropped and mirrored at random. The 2,048 images that calibrate
are not trained on. Attention is a product, a softmax and a product: on a CPU the gradient of the fused one takes half
of the time. A file that is there is kept: nothing is trained. Beside it lies a checkpoint of the last epoch until
the file is complete, from which a killed training goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from calib.errors import UserError
from calib.files.storage import write_bytes
from calib.tasks.cifar10 import TRAINING_BATCH, Cifar10Task
from calib.tasks.cifar10_vit import Cifar10Vit

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
SEED = 0


def train(data: Path, out: Path, epochs: int, device: str, *, bfloat16: bool) -> None:
    """Train and write the weights to `out`; what a checkpoint beside it holds is not done again."""
    torch.manual_seed(SEED)
    network = Cifar10Vit().to(device).train()
    task = Cifar10Task("cifar10-vit", network, data, None)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (task.training_images // TRAINING_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    checkpoint, begun = out.with_suffix(".checkpoint"), 0
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.exists():
        kept = torch.load(checkpoint, map_location=device, weights_only=True)  # noqa: TID251 - our own, tensors alone
        begun = kept.pop("epochs")
        for name, state in kept.items():
            parts[name].load_state_dict(state)
    for epoch in range(begun, epochs):
        start, losses = time.process_time(), []
        for batch in task.training(epoch):
            if len(batch.target) < TRAINING_BATCH:
                continue
            optimizer.zero_grad()
            with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                logits = network(batch.inputs[0].to(device))
            loss = functional.cross_entropy(logits.float(), batch.target.to(device), label_smoothing=LABEL_SMOOTHING)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        states = {name: part.state_dict() for name, part in parts.items()}
        with NamedTemporaryFile(dir=out.parent, delete=False) as stream:
            torch.save({"epochs": epoch + 1, **states}, stream)
        Path(stream.name).replace(checkpoint)
        seconds = time.process_time() - start
        print(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.3f}, {seconds:.0f} CPU s", flush=True)
    write_bytes(out, save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}))
    checkpoint.unlink()


def top1(data: Path, weights: Path) -> float:
    """Return the share of the test images whose label is the largest logit."""
    task = Cifar10Task("cifar10-vit", Cifar10Vit(), data, weights)
    with torch.no_grad():
        right = [task.metric(task.model()(*batch.inputs), batch.target) for batch in task.evaluation() or ()]
    return float(torch.cat(right).mean())


def main() -> int:
    """Train where there is no file, and say what it is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if not options.weights.exists():
            train(options.data, options.weights, options.epochs, options.device, bfloat16=options.bfloat16)
        print(f"{options.weights}: top-1 {top1(options.data, options.weights):.2%}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
