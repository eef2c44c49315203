"""Channel scales in front of layers with few bits: same float network, finer activations, same result after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.reconstruction import reconstruct as module
from smpq.reconstruction.channel_scales import with_channel_scales
from smpq.reconstruction.partial import PartialFile
from smpq.reconstruction.reconstruct import reconstruct
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.finetune import Subject

CHANNELS = 8
QUICK = ReconstructionSettings(iterations=20, samples=64, batch=16, channel_scales=True)


class Mixer(nn.Module):
    """Two blocks on tokens, and norms whose channels differ by a factor of a hundred, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, CHANNELS)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(CHANNELS, 2 * CHANNELS) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(2 * CHANNELS, CHANNELS) for _ in range(2))
        self.head = nn.Linear(CHANNELS, 3)
        with torch.no_grad():
            for norm in self.norms:
                norm.weight.copy_(10 ** torch.linspace(-1, 1, CHANNELS))
                norm.bias.copy_(norm.weight * torch.randn(CHANNELS))
            for layer in (*self.up, self.head):
                layer.weight *= 3 / self.norms[0].weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            x = x + down(torch.nn.functional.gelu(up(norm(x))))
        return self.head(self.norms[2](x).mean(1))


class Task:
    name, metric_name = "mixer", "accuracy"

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()


@pytest.fixture(scope="module", params=["affine", "symmetric"])
def given(request):
    torch.manual_seed(0)
    model = Mixer().eval().requires_grad_(False)
    inputs = [torch.randn(32, 5, 4) for _ in range(3)]
    batches = [Batch((x,), model(x).argmax(1)) for x in inputs]
    traced = TracedModel(model, (inputs[0][:2],))
    units, _ = find_units(traced)
    settings = CalibrationSettings("mse", "nearest", request.param)
    fake = FakeQuantizer(traced, units, Calibration(traced, units, batches, settings), QdqRules(request.param))

    def subject(text: str, **others: str) -> Subject:
        formats = {unit.path: Format.from_text(others.get(unit.path.replace(".", "_"), text)) for unit in units}
        plan = fake.plan(formats)
        return Subject(Task(), traced, units, model, (), plan, "the policy", "the fingerprint")

    return batches, fake, subject


def test_the_float_network_stays_and_the_quantised_one_comes_nearer(given):
    batches, fake, subject = given
    plain = subject("w8a4")
    scaled = with_channel_scales(plain, batches, fake.calibration.of)
    x = batches[0].inputs
    expected = plain.traced.run(x)
    torch.testing.assert_close(scaled.traced.run(x), expected, rtol=1e-5, atol=1e-4)
    errors = [(edited(each, x) - expected).square().mean() for each in (plain, scaled)]
    assert errors[1] < errors[0] / 3


def edited(subject, x):
    plan = subject.plan
    again = FakeQuantizer(subject.traced, subject.units, _Fixed(plan), QdqRules("affine"))
    return subject.traced.run(x, again.edits(plan))


class _Fixed:
    def __init__(self, plan) -> None:
        self._plan = plan

    def weight(self, unit, chosen):
        return self._plan.weights[unit.path]


def test_only_layers_behind_a_norm_with_few_bits_are_touched(given):
    batches, fake, subject = given
    plain = subject("w4a8", up_0="w4a3")
    scaled = with_channel_scales(plain, batches, fake.calibration.of)
    touched = {path for path, weight in scaled.plan.weights.items() if weight is not plain.plan.weights[path]}
    assert touched == {"up.0"}
    moved = [
        entry.tensor
        for entry, before in zip(scaled.plan.tensors, plain.plan.tensors, strict=True)
        if entry is not before
    ]
    assert moved == [next(unit.inputs[0] for unit in plain.units if unit.path == "up.0")]
    assert {name for name, tensor in plain.traced.state.items() if tensor is not scaled.traced.state[name]} == {
        "p_norms_0_weight", "p_norms_0_bias", "p_up_0_weight", "p_up_0_bias",
    }  # fmt: skip
    eight = subject("w4a8")
    assert with_channel_scales(eight, batches, fake.calibration.of) is eight


def test_the_rounding_and_the_ranges_are_those_of_the_run(given):
    batches, fake, subject = given
    scaled = with_channel_scales(subject("w4a4"), batches, fake.calibration.of)
    again = fake.calibration.of(scaled.traced, scaled.units)
    expected = FakeQuantizer(scaled.traced, scaled.units, again, fake.rules).plan(scaled.plan.formats)
    touched = {path: unit.inputs[0] for unit in scaled.units if (path := unit.path) in {"up.0", "up.1", "head"}}
    assert [entry for entry in expected.tensors if entry.tensor in touched.values()] == [
        entry for entry in scaled.plan.tensors if entry.tensor in touched.values()
    ]
    for path in touched:
        weight = expected.weights[path]
        assert torch.equal(weight.values, scaled.plan.weights[path].values)
        assert torch.equal(weight.scale, scaled.plan.weights[path].scale)


def test_the_reconstructed_model_holds_the_scales(given):
    batches, fake, subject = given
    plain = subject("w4a4")
    found = reconstruct(plain, batches, QUICK, calibrate=fake.calibration.of)
    off = reconstruct(plain, batches, replace(QUICK, channel_scales=False))
    assert found.before == off.before, "what the run had before"
    assert found.after.value > off.after.value
    assert found.settings["channel_scales"] is True
    tuned = found.traced(plain.traced)
    again = FakeQuantizer(tuned, plain.units, found.calibration(fake.calibration), fake.rules)
    output = again.run(plain.plan.formats, batches[0].inputs)
    accuracy = torch.cat([
        Task().metric(again.run(plain.plan.formats, batch.inputs), batch.target) for batch in batches
    ])  # fmt: skip
    assert float(accuracy.mean()) == pytest.approx(found.after.metric)
    assert not torch.equal(output, fake.run(plain.plan.formats, batches[0].inputs))


def test_a_kill_changes_nothing(given, tmp_path, monkeypatch):
    batches, fake, subject = given
    plain = subject("w4a4")
    undisturbed = reconstruct(plain, batches, QUICK, calibrate=fake.calibration.of)
    trained, calls = module.train_block, []

    def dies_in_the_second(*args):
        calls.append(args[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return trained(*args)

    monkeypatch.setattr(module, "train_block", dies_in_the_second)
    partial = tmp_path / PartialFile.NAME
    with pytest.raises(KeyboardInterrupt):
        reconstruct(plain, batches, QUICK, partial, calibrate=fake.calibration.of)
    resumed = reconstruct(plain, batches, QUICK, partial, calibrate=fake.calibration.of)
    assert len(calls) == len(undisturbed.history) + 1
    assert (resumed.before, resumed.after, resumed.quantizers) == (
        undisturbed.before, undisturbed.after, undisturbed.quantizers,
    )  # fmt: skip
    for path, weight in undisturbed.weights.items():
        assert torch.equal(weight.values, resumed.weights[path].values)
        assert torch.equal(weight.scale, resumed.weights[path].scale)
    for name, tensor in undisturbed.parameters.items():
        assert torch.equal(tensor, resumed.parameters[name])


def test_channels_that_never_vary_have_a_scale(given):
    batches, fake, subject = given
    plain = subject("w4a4")
    state = plain.traced.state
    dead = {"p_norms_0_weight": torch.zeros(CHANNELS), "p_norms_1_weight": state["p_norms_1_weight"].clone()}
    dead["p_norms_1_weight"][2] = 0
    dead["p_norms_1_bias"] = state["p_norms_1_bias"].clone()
    dead["p_norms_1_bias"][2] = 0
    plain = replace(plain, traced=plain.traced.with_state(dead))
    scaled = with_channel_scales(plain, batches, fake.calibration.of)
    x = batches[0].inputs
    assert all(bool(torch.isfinite(tensor).all()) for tensor in scaled.traced.state.values())
    torch.testing.assert_close(scaled.traced.run(x), plain.traced.run(x), rtol=1e-5, atol=1e-4)
