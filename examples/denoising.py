"""A network that removes noise, and the PSNR it reaches:
`smpq run --task examples.denoising:task --data D --weights W`.

DnCNN (Zhang et al., 2017, "Beyond a Gaussian Denoiser"; weights as in github.com/cszn/KAIR) for grey images with normal
noise of 25/255. The folder D has `set12.tar`, the images to evaluate, and `coco128.tar`, other photographs, which
calibrate. W is a file of the weights. Needs Pillow.

The images are of several sizes, and all batches need one shape. So the network sees tiles, which overlap: of each tile
counts what lies so far from its inner edges that these change nothing, and the figure is that of whole images.
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.files.weights import load_weights, restore
from calib.task import Batch

LAYERS, WIDTH = 17, 64
NOISE = 25 / 255
TILE = 160
MARGIN = LAYERS  # a 3x3 convolution looks one pixel further
CALIBRATION_IMAGES = 32
BATCH = 8


class DnCnn(nn.Module):
    """Seventeen 3x3 convolutions, whose output is the noise in their input."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, WIDTH, 3, 1, 1), nn.ReLU()]
        for _ in range(LAYERS - 2):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(WIDTH, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map noisy images `[n, 1, h, w]` in about 0..1 to clean ones of the same shape."""
        clean: Tensor = x - self.model(x)
        return clean


class Target(NamedTuple):
    """What the tiles of a batch are compared with."""

    clean: Tensor
    counts: Tensor
    """1 for pixels that count, else 0; both `[n, 1, TILE, TILE]`."""
    images: Tensor
    """Number of the image, `[n]`."""
    sizes: Tensor
    """Pixels of the whole image, `[n]`."""


class Denoising:
    """Set12 is evaluated, pieces of 32 other photographs calibrate."""

    name = "dncnn"
    metric_name = "PSNR"
    metric_point = 0.1  # a budget drop=0.5 is then 0.05 dB

    def __init__(self, data: Path, weights: Path) -> None:
        self._weights = weights
        self._evaluation = list(_read(data / "set12.tar"))
        self._calibration = [_middle(image) for image in _read(data / "coco128.tar", CALIBRATION_IMAGES)]

    def model(self) -> nn.Module:
        """Return the trained network."""
        model = DnCnn()
        restore(model, load_weights(self._weights), self._weights)
        return model.eval()

    def calibration(self) -> list[Batch]:
        """Return a tile of each of 32 photographs."""
        return _batches(self._calibration)

    def evaluation(self) -> list[Batch]:
        """Return all tiles of the twelve images."""
        return _batches(self._evaluation)

    # PSNR is the logarithm of the error of an image, not of a tile: a record has the tile's part of the error.
    def records(self, output: Tensor, target: Target) -> list[tuple[int, float, float]]:
        """Return for each tile the number of its image, which share of the image it is, and its part of the error."""
        errors = (_eight_bits(output) - target.clean).double().square() * target.counts
        shares, parts = (each.sum((1, 2, 3)) / target.sizes for each in (target.counts, errors))
        return list(zip(target.images.tolist(), shares.tolist(), parts.tolist(), strict=True))

    def metric_of(self, records: Sequence[tuple[int, float, float]]) -> float:
        """Return the mean PSNR of the images in dB; one that was drawn twice counts twice."""
        sums: dict[int, tuple[float, float]] = {}
        for image, share, part in records:
            shares, parts = sums.get(image, (0.0, 0.0))
            sums[image] = shares + share, parts + part
        whole = sum(shares for shares, _ in sums.values())
        return sum(shares * 10 * math.log10(shares / max(parts, 1e-12)) for shares, parts in sums.values()) / whole

    def groups(self, target: Target) -> list[int]:
        """Return the image of each tile: tiles of one image are alike."""
        numbers: list[int] = target.images.tolist()
        return numbers

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean squared error `[n]` of the pixels that count."""
        errors = (output - target.clean).square() * target.counts
        return errors.sum((1, 2, 3)) / target.counts.sum((1, 2, 3))


def task(data: Path | None, weights: Path | None) -> Denoising:
    """Make the task; name it `examples.denoising:task`."""
    if data is None or weights is None:
        raise UserError("this task needs --data, a folder with set12.tar and coco128.tar, and --weights")
    return Denoising(data, weights)


def noisy(clean: Tensor) -> Tensor:
    """Return an image `[h, w]` with noise, the same each time."""
    noise = np.random.RandomState(0).normal(0, NOISE, tuple(clean.shape))  # as published
    return clean + torch.from_numpy(noise).float()


def pieces(length: int) -> list[tuple[int, slice]]:
    """Return where tiles along one side of an image begin, and which of their pixels count: together each one once."""
    inner = TILE - 2 * MARGIN
    count = 1 if length == TILE else max(2, math.ceil((length - 2 * MARGIN) / inner))
    starts = [round(index * (length - TILE) / max(count - 1, 1)) for index in range(count)]
    ends = [start + TILE - MARGIN for start in starts[:-1]] + [length]
    begins = [0, *ends[:-1]]
    return [(start, slice(a - start, b - start)) for start, a, b in zip(starts, begins, ends, strict=True)]


def _batches(images: Sequence[Tensor]) -> list[Batch]:
    tiles = [tile for number, clean in enumerate(images) for tile in _tiles(number, clean)]
    parts = [tiles[start : start + BATCH] for start in range(0, len(tiles), BATCH)]
    batches = []
    for part in parts:
        inputs, clean, counts, images_of, sizes = zip(*part, strict=True)
        target = Target(torch.stack(clean), torch.stack(counts), torch.tensor(images_of), torch.tensor(sizes))
        batches.append(Batch((torch.stack(inputs),), target))
    return batches


def _tiles(number: int, clean: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, int, int]]:
    dirty = noisy(clean)
    for top, rows in pieces(clean.shape[0]):
        for left, columns in pieces(clean.shape[1]):
            own = slice(top, top + TILE), slice(left, left + TILE)
            counts = torch.zeros(TILE, TILE)
            counts[rows, columns] = 1
            yield dirty[own][None], clean[own][None], counts[None], number, clean.numel()


def _eight_bits(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round() / 255


def _middle(image: Tensor) -> Tensor:
    top, left = (image.shape[0] - TILE) // 2, (image.shape[1] - TILE) // 2
    return image[top : top + TILE, left : left + TILE]


def _read(path: Path, most: int | None = None) -> Iterator[Tensor]:
    """Yield the images in an archive in the order of their names, grey, in 0..1, `[h, w]`."""
    from PIL import Image

    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda each: each.name)[:most]:
                stream = archive.extractfile(member)
                if stream is not None:
                    pixels = np.asarray(Image.open(io.BytesIO(stream.read())).convert("L"), dtype=np.float32)
                    if min(pixels.shape) < TILE:
                        raise UserError(f"{member.name} in {path} is smaller than {TILE} x {TILE}")
                    yield torch.from_numpy(pixels / 255)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"cannot read {path} ({error}): it is an archive of images, see --data") from error
