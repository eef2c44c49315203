"""FastestDet on 128 images of COCO: a task whose metric is the average precision of each image.

The weights, images and boxes come from `--data`, a folder with `fastestdet.safetensors`, `coco128.tar` and
`coco128_boxes.json` (`examples/detection.py`). Every third image calibrates, the others are the evaluation data.

Run as a script, it prints the float model's AP50 over all images: fastestdet.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from calib.task import Batch
from examples.detection import Detection


class OfEachImage:
    name = "fastestdet"
    metric_name = "AP50 of an image"
    metric_point = 0.01

    def __init__(self, folder: Path) -> None:
        self.whole = Detection(folder, folder / "fastestdet.safetensors")

    def model(self) -> nn.Module:
        return self.whole.model()

    def calibration(self) -> list[Batch]:
        return self.whole.batches(range(0, len(self.whole.images), 3))

    def evaluation(self) -> list[Batch]:
        return self.whole.batches([index for index in range(len(self.whole.images)) if index % 3])

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return 1 - self.loss(output, target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.whole.loss(output, target)


def fastestdet_task(data: Path | None, weights: Path | None) -> OfEachImage:  # noqa: ARG001 - the folder has them
    assert data is not None
    return OfEachImage(data)


if __name__ == "__main__":
    given = OfEachImage(Path(sys.argv[1]))
    model, whole = given.model(), given.whole
    with torch.no_grad():
        records = [one for batch in whole.evaluation() for one in whole.records(model(*batch.inputs), batch.target)]
        values = torch.cat([given.metric(model(*batch.inputs), batch.target) for batch in given.evaluation()])
    print("AP50 of all images:", whole.metric_of(records), len(records))
    print("mean AP50 of an image, evaluation:", float(values.mean()), len(values))
