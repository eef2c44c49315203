"""Networks whose parameters several places read, or that return more than floats, come out of a reconstruction as what
it says they are.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.errors import UserError
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.reconstruction.blocks import find_blocks
from smpq.reconstruction.partial import PartialFile
from smpq.reconstruction.reconstruct import reconstruct
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.finetune import Subject
from tests.smpq.tunable import Task

QUICK = ReconstructionSettings(iterations=20, samples=32, batch=16)


class Unlabelled(Task):
    """The KL divergence of the first output, or of the only one."""

    def divergence(self, output, float_output):
        ours, theirs = (each if isinstance(each, torch.Tensor) else each[0] for each in (output, float_output))
        return F.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="none").sum(1)


def subject_of(model, inputs, chosen="w2a8", task=None, *, free=True):
    batches = [Batch((inputs,), None)]
    traced = TracedModel(model.eval(), (inputs[:2] if free else inputs,), free=free)
    units, _ = find_units(traced)
    calibration = Calibration(traced, units, batches, CalibrationSettings("minmax", "nearest", "affine"))
    plan = FakeQuantizer(traced, units, calibration, QdqRules("affine")).plan(
        {unit.path: Format.from_text(chosen) for unit in units}
    )
    return Subject(task or Unlabelled(), traced, units, model, (), plan, "policy", "fingerprint"), batches


class OneBias(nn.Module):
    """Three layers in three blocks: two add one parameter, the last adds a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.layers[1].bias = self.layers[0].bias
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.register_buffer("offset", torch.randn(4))

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return F.linear(x, self.weight, self.offset)


def test_a_bias_that_others_read_stays(tmp_path):
    subject, batches = subject_of(OneBias(), torch.randn(32, 6))
    found = reconstruct(subject, batches, QUICK)
    assert torch.equal(found.parameters["layers.0.bias"], subject.original.layers[0].bias)
    found.check_fits(subject.traced, subject.units, tmp_path)
    again = found.traced(subject.traced).run(batches[0].inputs)
    assert torch.isfinite(again).all()


def test_a_kill_before_the_block_that_reads_a_bias_again(tmp_path):
    subject, batches = subject_of(OneBias(), torch.randn(32, 6))
    whole, partial = reconstruct(subject, batches, QUICK), tmp_path / PartialFile.NAME

    def dies(progress):
        if progress.cost is not None and progress.block == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(subject, batches, QUICK, partial, dies)
    resumed = reconstruct(subject, batches, QUICK, partial)
    assert resumed.after == whole.after
    assert all(torch.equal(tensor, resumed.parameters[name]) for name, tensor in whole.parameters.items())


class Tied(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.middle = nn.Embedding(12, 8), nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + F.gelu(self.middle(x))
        return F.linear(x, self.embedding.weight).mean(1)


def test_a_tied_weight_is_learned_where_it_is_read_first():
    subject, batches = subject_of(Tied(), torch.arange(32 * 3).reshape(32, 3) % 12, "w4a16")
    blocks = find_blocks(subject.traced, subject.units)
    (tied,) = (unit for unit in subject.units if unit.operator == "tied_embedding")
    assert [tied in block.units for block in blocks] == [True, *[False] * (len(blocks) - 1)]
    found = reconstruct(subject, batches, QUICK)
    assert found.after.value > found.before.value


class WithChoice(nn.Module):
    """Scores, and besides the class that they are largest for, a state whose first axis counts no samples, a sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        hidden = F.relu(self.second(x))
        scores = self.head(hidden)
        return scores, scores.argmax(1), torch.stack([x, hidden]), hidden.sum()


@pytest.mark.parametrize("loss", ["mse", "brecq", "fima-q"])
def test_what_is_no_row_of_floats_is_not_compared(loss):
    subject, batches = subject_of(WithChoice(), torch.randn(32, 6))
    found = reconstruct(subject, batches, replace(QUICK, loss=loss))
    assert found.after.value > found.before.value
    traced = subject.traced
    outputs = [name for block in find_blocks(traced, subject.units) for name in block.outputs]
    assert len(outputs) == len(found.history), "one of each block"
    assert all(traced.nodes[name].meta["val"].is_floating_point() for name in outputs)


class Fixed(nn.Module):
    """Takes 24 samples, and no other number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.two(F.relu(self.one(x)).reshape(24, 6))


def test_a_network_of_one_size_that_does_not_divide_what_blocks_are_judged_on():
    subject, batches = subject_of(Fixed(), torch.randn(24, 6), free=False)
    batches = [Batch((torch.randn(24, 6),), None) for _ in range(12)]
    found = reconstruct(subject, batches, replace(QUICK, samples=288))
    assert found.after.value > found.before.value


def test_a_divergence_without_a_gradient_is_told():
    class Counted(Unlabelled):
        def divergence(self, output, float_output):
            return (output[0].argmax(1) != float_output[0].argmax(1)).float()

    subject, batches = subject_of(WithChoice(), torch.randn(32, 6), task=Counted())
    with pytest.raises(UserError, match=r"divergence .* cannot be differentiated.*--loss or --method"):
        reconstruct(subject, batches, replace(QUICK, loss="brecq"))
