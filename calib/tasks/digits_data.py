"""What the tasks on scikit-learn's digits share: images, their split, distortion, and training on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.files.cache import trained
from calib.task import Batch

if TYPE_CHECKING:
    from pathlib import Path

# The data set is ordered by writer: with a cut, not a shuffle, most evaluation images come from writers never seen in
# training.
TRAINING_IMAGES = 1200
CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 128
EVALUATION_BATCH = 199
TRAINING_SEED = 1000
"""Added to the number of the epoch."""
DISTORTION = {"rotation": 0.25, "size": 0.1, "shift": 0.25}
"""Half ranges of the random rotation (radians), relative size and shift (in half image widths)."""


class DigitsTask:
    """The first 1,200 images train the network, 512 of them calibrate and 688 fine-tune; the other 597 evaluate.

    A task on this data gives its `name`, its `recipe` (seed, epochs, batch, learning_rate, label_smoothing and whatever
    else decides the weights: any change of it trains anew), its `network()` and its `optimizer(model)`.
    """

    name: str
    recipe: ClassVar[Mapping[str, float]]
    metric_name = "top-1"

    def __init__(self) -> None:
        digits = load_digits()
        self._images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        self._labels = torch.tensor(digits.target, dtype=torch.int64)

    def network(self) -> nn.Module:
        """Return the untrained network, `[n, 1, 8, 8]` in 0..1 to logits `[n, 10]`."""
        raise NotImplementedError

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return what trains the network; its learning rate rises and falls once."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """Return the network, trained on first use (less than a minute on a CPU), later from the cache."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.recipe["seed"]))
            return trained(self.name, self.network(), self.recipe, self._train, threads=1)

    def calibration(self) -> list[Batch]:
        """Return 512 training images, spread evenly over the training part, in batches of 128."""
        return self._batches(_calibrating(), CALIBRATION_BATCH)

    def example_inputs(self) -> Tensor:
        """Return an empty image."""
        return torch.zeros(1, *self._images.shape[1:])

    def training(self, epoch: int) -> Iterator[Batch]:
        """Yield the 688 training images that do not calibrate, distorted at random, in batches as large as the
        recipe's.
        """
        generator = torch.Generator().manual_seed(TRAINING_SEED + epoch)
        kept = torch.ones(TRAINING_IMAGES, dtype=torch.bool)
        kept[_calibrating()] = False
        images = kept.nonzero()[:, 0]
        for part in images[torch.randperm(len(images), generator=generator)].split(int(self.recipe["batch"])):
            yield Batch((_distorted(self._images[part], generator),), self._labels[part])

    def evaluation(self) -> list[Batch]:
        """Return the 597 held-out images in batches of 199."""
        return self._batches(torch.arange(TRAINING_IMAGES, len(self._labels)), EVALUATION_BATCH)

    def metric(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`: 1 where the largest logit is the label, otherwise 0."""
        correct: Tensor = output.argmax(1) == target
        return correct.float()

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the cross entropy `[n]`."""
        return functional.cross_entropy(output, target, reduction="none")

    def _batches(self, chosen: Tensor, size: int) -> list[Batch]:
        return [Batch((self._images[part],), self._labels[part]) for part in chosen.split(size)]

    @torch.enable_grad()
    def _train(self, model: nn.Module) -> None:
        size, epochs = int(self.recipe["batch"]), int(self.recipe["epochs"])
        steps = TRAINING_IMAGES // size
        optimizer = self.optimizer(model)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.recipe["learning_rate"], total_steps=epochs * steps
        )
        model.train()
        for _ in range(epochs):
            order = torch.randperm(TRAINING_IMAGES)
            for part in order[: steps * size].split(size):
                optimizer.zero_grad()
                output = model(_distorted(self._images[part]))
                functional.cross_entropy(
                    output, self._labels[part], label_smoothing=self.recipe["label_smoothing"]
                ).backward()
                optimizer.step()
                schedule.step()


def check_no_paths(name: str, data: Path | None, weights: Path | None) -> None:
    """Raise UserError when a path is given: these tasks bring their own data and weights."""
    for option, path in (("--data", data), ("--weights", weights)):
        if path is not None:
            raise UserError(f"task {name} takes no {option} ({path}): leave it out, the data come with scikit-learn")


def _calibrating() -> Tensor:
    return torch.arange(CALIBRATION_IMAGES) * TRAINING_IMAGES // CALIBRATION_IMAGES


def _distorted(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn, scale and shift every image at random: 1,200 images of thirteen writers are few."""
    count = len(images)
    angle = DISTORTION["rotation"] * (2 * torch.rand(count, generator=generator) - 1)
    size = 1 + DISTORTION["size"] * (2 * torch.rand(count, generator=generator) - 1)
    shift = DISTORTION["shift"] * (2 * torch.rand(count, 2, generator=generator) - 1)
    row_x = torch.stack([size * angle.cos(), -size * angle.sin(), shift[:, 0]], 1)
    row_y = torch.stack([size * angle.sin(), size * angle.cos(), shift[:, 1]], 1)
    grid = functional.affine_grid(torch.stack([row_x, row_y], 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
