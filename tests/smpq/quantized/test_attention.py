"""The products of attention under a policy: whose bits they have, and that everything that runs a policy sees them."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, Format
from calib.network.attention import find_attention
from calib.network.execution import Edits
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.reconstruction.reconstruct import reconstruct
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.finetune import Subject
from smpq.value.divergence import divergence
from smpq.value.value import PolicyValue

WIDTH = 8


class Net(nn.Module):
    """Attention whose first token one layer reads, and whose second another one."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out, self.other = (nn.Linear(WIDTH, WIDTH) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(3 * self.query(x), 3 * self.key(x), self.value(x))
        return self.out(mixed[:, 0]) + self.other(mixed[:, 1])


class Given:
    def __init__(self, scheme="affine", observer="minmax") -> None:
        torch.manual_seed(0)
        self.model = Net().eval().requires_grad_(False)
        self.x = torch.randn(64, 5, WIDTH)
        self.batches = [Batch((part,), None) for part in self.x.split(32)]
        self.traced = TracedModel(self.model, (self.x[:2],), attention=True)
        self.units, _ = find_units(self.traced)
        (self.attention,), _ = find_attention(self.traced, self.units)
        self.settings = CalibrationSettings(observer, "nearest", scheme)
        self.calibration = self.calibrated([self.attention])
        self.fake = FakeQuantizer(self.traced, self.units, self.calibration, QdqRules(scheme))

    def calibrated(self, attention):
        return Calibration(self.traced, self.units, self.batches, self.settings, attention=attention)

    def formats(self, default, **others):
        return {unit.path: Format.from_text(others.get(unit.path, default)) for unit in self.units}

    def products(self, formats):
        """The quantiser of each operand of a product, in the order query, key, shares, value."""
        entries = self.fake.plan(formats).tensors
        found = {(entry.tensor, consumer): entry.quantizer for entry in entries for consumer in entry.consumers or ()}
        return [found[place] for place in self.attention.operands if place in found]


@pytest.fixture(scope="module")
def given():
    return Given()


def test_one_attention_by_hand(given):
    formats = given.formats("w8a8", out="w8a4", other="w8a4")
    query, key, shares, value = given.products(formats)
    layers = {unit.path: given.calibration.weight(unit, formats[unit.path]).dequantize() for unit in given.units}
    inputs = {unit.path: given.fake.plan(formats).input_quantizer(unit, 0) for unit in given.units}

    def layer(name, x):
        return F.linear(inputs[name](x), layers[name], getattr(given.model, name).bias)

    scores = query(3 * layer("query", given.x)) @ key(3 * layer("key", given.x)).transpose(1, 2) / WIDTH**0.5
    mixed = shares(scores.softmax(-1)) @ value(layer("value", given.x))
    expected = layer("out", mixed[:, 0]) + layer("other", mixed[:, 1])
    close = (given.fake.run(formats, (given.x,)) - expected).abs() < 1e-4
    assert close.float().mean() > 0.98, "but for single values that lie between two steps"


def test_the_bits_are_those_of_the_layers_that_read_the_result(given):
    def bits(**others):
        return [quantizer.bits for quantizer in given.products(given.formats("w8a8", **others))]

    assert bits(out="w4a3", other="w2a3", query="w2a2") == [3] * 4
    assert bits(out="w4a3", other="w4a5") == [5] * 4, "the widest of several"
    assert bits(out="w4a3", other="w4a16") == []
    assert bits(out="w4a3", other="fp32") == []
    assert bits(query="fp32", key="w4a16") == [8] * 4


def test_a_float_policy_changes_nothing(given):
    output = given.fake.run(given.formats("fp32"), (given.x,))
    assert torch.equal(output, given.traced.run((given.x,)))
    torch.testing.assert_close(output, given.model(given.x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_shares_have_a_quantiser_of_their_own(scheme, observer):
    given = Given(scheme, observer)
    query, _, shares, value = given.products(given.formats("w8a3"))
    assert (shares.signed, shares.zero_point, shares.limits) == (False, 0, (0, 7))
    assert query.signed == value.signed == (scheme == "symmetric")
    seen: list[Tensor] = []
    given.traced.run((given.x,), observe=lambda name, tensor: seen.append(tensor) if name == "softmax" else None)
    (real,) = seen

    def error(scale):
        return float(((real / scale).round().clamp(0, 7) * scale - real).square().mean())

    assert error(shares.scale) < 1.02 * min(error(float(step)) for step in torch.linspace(0.02, 0.15, 200))


def test_without_attention_a_calibration_is_what_it_was(given):
    plain = given.calibrated(())
    fake = FakeQuantizer(given.traced, given.units, plain, QdqRules("affine"))
    formats = given.formats("w4a4")
    consumers = [consumer for entry in fake.plan(formats).tensors for consumer in entry.consumers or ()]
    assert sorted(consumers) == sorted(call for unit in given.units for call in unit.calls)
    without = [entry for entry in given.fake.plan(formats).tensors if set(entry.consumers) <= set(consumers)]
    assert fake.plan(formats).tensors == tuple(without)
    assert plain.digest() != given.calibrated([given.attention]).digest(), (
        "values of the one are not those of the other"
    )


def test_a_copy_in_another_process_gives_the_same(given):
    formats = {path: [chosen, Format.from_text("w4a3")] for path, chosen in given.formats("w8a8").items()}
    given.fake.prepare(formats)
    copy = pickle.loads(pickle.dumps(given.fake))  # noqa: TID251 - our own bytes
    for row in (given.formats("w8a8"), given.formats("w4a3"), given.formats("w8a8", out="w4a3")):
        assert torch.equal(copy.run(row, (given.x,)), given.fake.run(row, (given.x,)))


def test_policies_that_are_evaluated_one_after_the_other_see_them(given):
    groups = find_groups(given.traced, given.units)
    rows = {group.name: tuple(map(Format.from_text, ("w8a8", "w8a3", "fp32"))) for group in groups}
    space = Space(groups, rows, FP32)
    wide = {group.name: Format.from_text("w8a8") for group in groups}
    reading = [group.name for group in groups if {unit.path for unit in group.units} <= {"out", "other"}]
    narrow = {**wide, **dict.fromkeys(reading, Format.from_text("w8a3"))}
    policies = [Policy(wide), Policy(narrow), Policy(dict.fromkeys(wide, FP32))]
    values = dict(PolicyValue(given.fake, space, Task(), given.batches)(policies))
    float_output = given.model(given.x)
    for number, policy in enumerate(policies):
        output = given.fake.run(policy.by_unit(groups), (given.x,))
        assert values[number] == pytest.approx(-float(divergence(output, float_output).mean()), rel=1e-3, abs=1e-7)
    plain = FakeQuantizer(given.traced, given.units, given.calibrated(()), QdqRules("affine"))
    without = dict(PolicyValue(plain, space, Task(), given.batches)(policies))
    assert values[1] < 1.05 * without[1] < 0, "more is lost with the products"


class Task:
    name, metric_name = "attention", "near"

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return output.mean(1)


def test_a_reconstruction_learns_the_steps_of_products(given):
    formats = given.formats("w4a3")
    plan = given.fake.plan(formats)
    subject = Subject(Task(), given.traced, given.units, given.model, (), plan, "policy", "fingerprint")
    found = reconstruct(subject, given.batches, ReconstructionSettings(iterations=60, samples=64, batch=32))
    steps = {entry.tensor: entry.quantizer.scale for entry in plan.tensors}
    moved = [found.quantizers[tensor, 3].scale != steps[tensor] for tensor, _ in given.attention.operands]
    assert moved == [True] * 4
    calibration = found.calibration(given.calibration)
    tuned = FakeQuantizer(found.traced(given.traced), given.units, calibration, QdqRules("affine"))
    places = {place for entry in tuned.plan(formats).tensors for place in ((entry.tensor, entry.consumers),)}
    assert places == {(entry.tensor, entry.consumers) for entry in plan.tensors}
    exact = given.model(given.x)
    errors = [(fake.run(formats, (given.x,)) - exact).square().mean() for fake in (given.fake, tuned)]
    assert errors[1] < 0.8 * errors[0]


def test_products_are_seen_by_edits_alone(given):
    """What is quantised is what the plan says: without its entries for products nothing else changes."""
    formats = given.formats("fp32", out="w8a2", other="w8a2")
    edits = given.fake.edits(given.fake.plan(formats))
    products = {place: edit for place, edit in edits.edges.items() if place in given.attention.operands}
    assert len(products) == 4
    rest = Edits(edits.sources, {k: v for k, v in edits.edges.items() if k not in products}, edits.parameters)
    plain = FakeQuantizer(given.traced, given.units, given.calibrated(()), QdqRules("affine"))
    assert torch.equal(given.traced.run((given.x,), rest), plain.run(formats, (given.x,)))
    assert not torch.allclose(given.traced.run((given.x,), edits), plain.run(formats, (given.x,)), atol=1e-2)
