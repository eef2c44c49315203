"""A detector and the average precision over all images: `smpq run --task examples.detection:task --data D --weights W`.

FastestDet, a ShuffleNetV2 with one head (github.com/dog-qiuqiu/FastestDet), on images of COCO. The folder D has
`coco128.tar`, images of 352 x 352, and `coco128_boxes.json`: for each image's name its `boxes`, lists of class, centre
x, centre y, width and height in fractions of the image. W is a file of the weights. Needs Pillow. Average precision is
no mean over images, so the task has `records` and `metric_of` in place of `metric`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.files.weights import load_weights, restore
from calib.task import Batch
from examples.fastestdet import FastestDet

MOST_BOXES, BATCH = 64, 8
SAME_OBJECT, FOUND, LEAST_SCORE, LEAST_CHANCE = 0.45, 0.5, 0.01, 1e-6
Flags: TypeAlias = NDArray[np.bool_]


def overlaps(one: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of corner boxes `[n, 4]` with others `[m, 4]`: `[n, m]`."""
    low = torch.maximum(one[:, None, :2], others[None, :, :2])
    high = torch.minimum(one[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-12)


def corners(boxes: Tensor) -> Tensor:
    """Turn centre and size into corners."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def detections(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return corner boxes, scores and classes of an image's output `[85, h, w]`: the best first, without doubles."""
    height, width = output.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    best, classes = output[5:].max(0)
    scores = output[0] ** 0.6 * best**0.4
    centre = torch.stack(
        [(columns + output[1].tanh()) / width, (rows + output[2].tanh()) / height, *output[3:5].sigmoid()], -1
    )
    kept = scores > LEAST_SCORE
    order = scores[kept].argsort(descending=True, stable=True)
    boxes, scores, classes = corners(centre[kept][order]), scores[kept][order], classes[kept][order]
    doubles = (overlaps(boxes, boxes) > SAME_OBJECT) & (classes[:, None] == classes[None])
    alive = np.ones(len(boxes), bool)
    for index, row in enumerate(doubles.numpy()):
        if alive[index]:
            alive[index + 1 :] &= ~row[index + 1 :]
    return boxes[alive], scores[alive], classes[alive]


def matched(boxes: Tensor, truth: Tensor) -> Flags:
    """Say of boxes of one class, the best score first, which find a true box that no better one has found."""
    shares, free, found = overlaps(boxes, truth).numpy(), np.ones(len(truth), bool), np.zeros(len(boxes), bool)
    for index in range(len(boxes)) if len(truth) else ():
        share = np.where(free, shares[index], -1.0)
        place = int(share.argmax())
        if share[place] >= FOUND:
            found[index], free[place] = True, False
    return found


def average_precision(found: Flags, count: int) -> float:
    """Return the mean of the precision at 101 recalls; `found` has the best score first, `count` true boxes."""
    hits = found.cumsum()
    recall, precision = hits / count, hits / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-9)
    return float(np.append(precision, 0.0)[places].mean())


class Record(NamedTuple):
    """What average precision needs of one image: its true classes, and of each box class, score, and if it is right."""

    truth: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    found: Flags


def record_of(output: Tensor, target: Tensor) -> Record:
    """Return the record of one image; `target` is `[n, 5]`, class and box, padded by rows of -1."""
    truth = target[target[:, 0] >= 0]
    boxes, scores, classes = detections(output.detach())
    found = np.zeros(len(boxes), bool)
    for each in truth[:, 0].unique():
        own = classes == each
        found[own.numpy()] = matched(boxes[own], corners(truth[truth[:, 0] == each, 1:]))
    return Record(truth[:, 0].long().numpy(), classes.numpy(), scores.numpy(), found)


def mean_average_precision(records: Sequence[Record]) -> float:
    """Return the mean of the average precision over the classes in some images, NaN where nothing is in them."""
    truth, classes, scores, found = (np.concatenate(part) for part in zip(*records, strict=True))
    order = np.argsort(-scores, kind="stable")
    classes, found = classes[order], found[order]
    present, counts = np.unique(truth, return_counts=True)
    values = [average_precision(found[classes == each], n) for each, n in zip(present, counts, strict=True)]
    return float(np.mean(values)) if values else float("nan")


class Detection:
    """All images are evaluated. Every third one, mirrored, calibrates: there are no others."""

    name = "fastestdet"
    metric_name = "AP50"  # in percent: a budget drop=0.5 is then half a percent

    def __init__(self, data: Path, weights: Path) -> None:
        self._weights = weights
        self.images, self.targets = _read(data)

    def model(self) -> nn.Module:
        """Return the trained network."""
        restore(model := FastestDet(), load_weights(self._weights), self._weights)
        return model.eval()

    def calibration(self) -> list[Batch]:
        """Return every third image, mirrored, with its boxes."""
        factors, offsets = torch.tensor([1.0, -1, 1, 1, 1]), torch.tensor([0.0, 1, 0, 0, 0])  # centre x to 1 - x
        found = self.batches(range(0, len(self.images), 3))
        return [Batch((batch.inputs[0].flip(3),), batch.target * factors + offsets) for batch in found]

    def evaluation(self) -> list[Batch]:
        """Return all images."""
        return self.batches(range(len(self.images)))

    def batches(self, chosen: Sequence[int]) -> list[Batch]:
        """Return some of the images, with the boxes of each padded to 64 rows."""
        return [Batch((self.images[part],), self.targets[part]) for part in torch.tensor(chosen).split(BATCH)]

    def records(self, output: Tensor, target: Tensor) -> list[Record]:
        """Return the record of each image: boxes are matched here, once,
        for `metric_of` is called hundreds of times.
        """
        return [record_of(*pair) for pair in zip(output, target, strict=True)]

    def metric_of(self, records: Sequence[Record]) -> float:
        """Return AP50 in percent."""
        return 100 * mean_average_precision(records)

    def confidences(self, output: Tensor) -> Tensor:
        """Return `[n]`, the score of the best cell of each image."""
        return (output[:, 0] ** 0.6 * output[:, 5:].amax(1) ** 0.4).flatten(1).amax(1)

    def divergence(self, output: Tensor, float_output: Tensor) -> Tensor:
        """Return `[n]`: the KL divergence of what the cells of an image say, in nats, summed over cells: if there is an
        object, and as far as the float network thinks so, where and which.
        """
        ours, known = (
            (each.clamp(LEAST_CHANCE), (1 - each[:, 0]).clamp(LEAST_CHANCE)) for each in (output, float_output)
        )
        terms = known[0] * (known[0] / ours[0]).log()
        box = (output[:, 1:5] - float_output[:, 1:5]).square().sum(1) / 2  # as of normal distributions of variance 1
        there = terms[:, 0] + known[1] * (known[1] / ours[1]).log()
        return (there + known[0][:, 0] * (terms[:, 5:].sum(1) + box)).flatten(1).sum(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return `[n]`, 1 less the average precision of an image by itself; 0 where nothing is in it."""
        values = torch.tensor([mean_average_precision([each]) for each in self.records(output, target)])
        return 1 - values.nan_to_num(1.0)


def task(data: Path | None, weights: Path | None) -> Detection:
    """Make the task; name it `examples.detection:task`."""
    if data is not None and weights is not None:
        return Detection(data, weights)
    raise UserError("this task needs --data, a folder with coco128.tar and coco128_boxes.json, and --weights")


def _read(folder: Path) -> tuple[Tensor, Tensor]:
    from PIL import Image

    images, targets = [], []
    try:
        known = json.loads((folder / "coco128_boxes.json").read_text(encoding="utf-8"))
        with tarfile.open(folder / "coco128.tar") as archive:
            for member in sorted(archive.getmembers(), key=lambda each: each.name):
                stream, name = archive.extractfile(member), Path(member.name).stem
                if stream is None or name not in known:
                    continue
                pixels = np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"))
                # red, green, blue as [h, w, 3] -> blue, green, red as [3, h, w]
                images.append(torch.from_numpy(pixels[..., ::-1].transpose(2, 0, 1).astype("float32") / 255))
                boxes = torch.tensor(known[name]["boxes"]).reshape(-1, 5)
                targets.append(functional.pad(boxes, (0, 0, 0, MOST_BOXES - len(boxes)), value=-1.0))
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(f"cannot read coco128.tar and coco128_boxes.json in {folder} ({error}): see --data") from error
    if not images:
        raise UserError(f"{folder / 'coco128.tar'} holds no image that coco128_boxes.json names")
    return torch.stack(images), torch.stack(targets)
