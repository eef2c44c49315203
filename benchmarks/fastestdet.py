"""FastestDet on 128 images of COCO: a task whose metric is the average precision of each image.

The weights, images and boxes come from `--data`, a folder with `fastestdet.safetensors`, `coco128.tar` and
`coco128_boxes.json` (class, centre x, centre y, width, height in fractions of the image).

Run as a script, it prints the float model's AP50 over all images: fastestdet.py FOLDER
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from calib.task import Batch

SIZE, CLASSES, MOST_BOXES = 352, 80, 64
SAME_OBJECT, FOUND, LEAST_SCORE = 0.45, 0.5, 0.01
CALIBRATION = 43


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False) -> list[nn.Module]:
    groups = inputs if depthwise else 1
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class Shuffle(nn.Module):
    """A ShuffleNetV2 block. With stride 1 the odd channels are worked on and the even ones pass; with stride 2 a second
    branch shrinks the input.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.branch_main = nn.Sequential(
            *normed(width, width, 1),
            nn.ReLU(),
            *normed(width, width, 3, stride, depthwise=True),
            *normed(width, width, 1),
            nn.ReLU(),
        )
        self.branch_proj: nn.Module | None = None
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *normed(width, width, 3, 2, depthwise=True), *normed(width, width, 1), nn.ReLU()
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        n, channels, height, width = x.shape
        pairs = x.reshape(n, channels // 2, 2, height, width)
        return torch.cat([pairs[:, :, 0], self.branch_main(pairs[:, :, 1])], 1)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*normed(3, 24, 3, 2), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(Shuffle(width, 2), *(Shuffle(width, 1) for _ in range(more)))
            for width, more in ((24, 3), (48, 7), (96, 3))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self.stage2(self.maxpool(self.first_conv(x)))
        middle = self.stage3(low)
        return low, middle, self.stage4(middle)


class Conv1x1(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*normed(inputs, outputs, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x)


class Pyramid(nn.Module):
    """One, two and three depthwise convolutions side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.Conv1x1 = Conv1x1(inputs, width)
        self.S1, self.S2, self.S3 = (
            nn.Sequential(*(part for _ in range(n) for part in (*normed(width, width, 5, depthwise=True), nn.ReLU())))
            for n in (1, 2, 3)
        )
        self.output = nn.Sequential(*normed(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return functional.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class Branch(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*normed(width, width, 5, depthwise=True), nn.ReLU(), *normed(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5x5(x)


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1x1 = Conv1x1(width, width)
        self.obj_layers, self.reg_layers = Branch(width, 1), Branch(width, 4)
        self.cls_layers = Branch(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x)
        objects, boxes, classes = self.obj_layers(x), self.reg_layers(x), self.cls_layers(x)
        return torch.cat([objects.sigmoid(), boxes, classes.softmax(1)], 1)


class FastestDet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.SPP, self.detect_head = Backbone(), Pyramid(336, 96), Head(96)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.avg_pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, middle, high = self.backbone(x)
        return self.detect_head(self.SPP(torch.cat([self.avg_pool(low), middle, self.upsample(high)], 1)))


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
    """Return corner boxes, scores and classes in one image's output `[85, h, w]`, the best score first, without
    doubles.
    """
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
    picked = torch.from_numpy(alive)
    return boxes[picked], scores[picked], classes[picked]


def matched(boxes: Tensor, truth: Tensor) -> np.ndarray:
    """Say of boxes of one class, the best score first, which find a true box that no better one has found."""
    shares, free, found = overlaps(boxes, truth).numpy(), np.ones(len(truth), bool), np.zeros(len(boxes), bool)
    for index in range(len(boxes)) if len(truth) else ():
        share = np.where(free, shares[index], -1.0)
        place = int(share.argmax())
        if share[place] >= FOUND:
            found[index], free[place] = True, False
    return found


def average_precision(found: np.ndarray, count: int) -> float:
    """Return the mean of the precision at 101 recalls; `found` has the best score first, `count` true boxes."""
    hits = found.cumsum()
    recall, precision = hits / count, hits / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-9)
    return float(np.append(precision, 0.0)[places].mean())


def of_image(output: Tensor, target: Tensor) -> float:
    """Return the mean over the classes in an image of their average precision; `target` is `[n, 5]`, padded by -1."""
    truth = target[target[:, 0] >= 0]
    boxes, _, classes = detections(output.detach())
    found = []
    for each in truth[:, 0].unique():
        own = corners(truth[truth[:, 0] == each, 1:])
        found.append(average_precision(matched(boxes[classes == each], own), len(own)))
    return float(np.mean(found)) if found else 1.0


class Detection:
    """Every third image calibrates, the others are the evaluation data."""

    name = "fastestdet"
    metric_name = "AP50 of an image"
    metric_point = 0.01

    def __init__(self, folder: Path) -> None:
        self._weights = load_file(folder / "fastestdet.safetensors")
        boxes = json.loads((folder / "coco128_boxes.json").read_text())
        self.images, self.targets = [], []
        with tarfile.open(folder / "coco128.tar") as archive:
            for member in sorted(archive.getmembers(), key=lambda each: each.name):
                name = Path(member.name).stem
                if not member.isfile() or name not in boxes:
                    continue
                pixels = np.asarray(Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB"))
                assert pixels.shape == (SIZE, SIZE, 3), pixels.shape
                self.images.append(torch.from_numpy(pixels[..., ::-1].transpose(2, 0, 1).astype("float32") / 255))
                target = torch.full((MOST_BOXES, 5), -1.0)
                known = torch.tensor(boxes[name]["boxes"]).reshape(-1, 5)
                target[: len(known)] = known
                self.targets.append(target)

    def model(self) -> nn.Module:
        model = FastestDet()
        model.load_state_dict(self._weights)
        return model.eval()

    def calibration(self) -> list[Batch]:
        return self.batches(range(0, len(self.images), 3), 8)

    def evaluation(self) -> list[Batch]:
        return self.batches([index for index in range(len(self.images)) if index % 3], 8)

    def batches(self, indices: range | list[int], count: int) -> list[Batch]:
        parts = [indices[start : start + count] for start in range(0, len(indices), count)]
        return [
            Batch((torch.stack([self.images[i] for i in part]),), torch.stack([self.targets[i] for i in part]))
            for part in parts
        ]

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.tensor([of_image(*pair) for pair in zip(output, target, strict=True)])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 1 - self.metric(output, target)


def fastestdet_task(data: Path | None, weights: Path | None) -> Detection:  # noqa: ARG001 - the folder has them
    assert data is not None
    return Detection(data)


def whole(task: Detection) -> tuple[float, int]:
    """Return AP50 over all images, in percent, and the number of classes present."""
    model, scores, found, counts = task.model(), {}, {}, {}
    with torch.no_grad():
        outputs = torch.cat([model(batch.inputs[0]) for batch in task.batches(range(len(task.images)), 8)])
    for output, target in zip(outputs, task.targets, strict=True):
        truth = target[target[:, 0] >= 0]
        boxes, score, classes = detections(output)
        for each in range(CLASSES):
            own = corners(truth[truth[:, 0] == each, 1:])
            counts[each] = counts.get(each, 0) + len(own)
            found.setdefault(each, []).append(matched(boxes[classes == each], own))
            scores.setdefault(each, []).append(score[classes == each].numpy())
    present = [each for each in counts if counts[each]]
    values = []
    for each in present:
        order = np.concatenate(scores[each]).argsort(kind="stable")[::-1]
        values.append(average_precision(np.concatenate(found[each])[order], counts[each]))
    return 100 * float(np.mean(values)), len(present)


if __name__ == "__main__":
    given = Detection(Path(sys.argv[1]))
    every = [value for batch in given.evaluation() for value in given.metric(given.model()(batch.inputs[0]), batch[1])]
    print("AP50 of all images, classes:", whole(given))
    print("mean AP50 of an image, evaluation:", float(torch.stack(every).mean()), len(every))
