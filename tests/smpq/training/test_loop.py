"""Which batches a graph can be trained on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.errors import UserError
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.training.finetune import Subject, finetune
from smpq.training.settings import FineTuneSettings
from tests.smpq.tunable import Task, batch_of, tunable

SETTINGS = FineTuneSettings(epochs=2)


class OneByOne(Task):
    def training(self, epoch):
        yield from (batch_of(1000 + 100 * epoch + index, 1) for index in range(5))


def subject_of(model: nn.Module, x: Batch) -> Subject:
    traced = TracedModel(model.eval(), x.inputs)
    units, _ = find_units(traced)
    fake = FakeQuantizer(traced, units, Calibration(traced, units, [x], CalibrationSettings()), QdqRules("affine"))
    plan = fake.plan({unit.path: Format.from_text("w4a8") for unit in units})
    return Subject(OneByOne(), traced, units, model, (), plan, "", "")


def test_a_model_without_batchnorm_trains_on_one_sample_at_a_time():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    tuned = finetune(subject_of(model, batch_of(1, 4)), [batch_of(2, 8)], SETTINGS)
    assert tuned.history[-1]["step"] == 10


def test_batchnorm_needs_two_samples():
    given = tunable(rounding="nearest")
    with pytest.raises(UserError, match="a BatchNorm needs two samples or more"):
        finetune(given.subject("w4a8", OneByOne()), given.batches, SETTINGS)
