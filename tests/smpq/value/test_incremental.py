import numpy as np
import pytest
import torch

from calib.formats.format import Format
from calib.network.execution import Edits
from calib.network.graph import TracedModel
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.incremental import outputs_of
from tests.smpq.problems import Residual, Traced, residual

FORMATS = ("w8a8", "w4a16", "w2a8", "fp16", "fp32")


@pytest.fixture(scope="module")
def network() -> Traced:
    return residual()


def formats_of(network: Traced, texts: list[str]) -> dict[str, Format]:
    return {unit.path: Format.from_text(text) for unit, text in zip(network.units, texts, strict=True)}


def drawn_edits(network: Traced, count: int, rules: QdqRules) -> list[Edits]:
    fake = FakeQuantizer(network.traced, network.units, network.calibration, rules)
    choices = np.random.default_rng(1).integers(len(FORMATS), size=(count, len(network.units)))
    choices[1:] = np.where(np.random.default_rng(2).random(choices[1:].shape) < 0.7, choices[0], choices[1:])
    formats = [formats_of(network, [FORMATS[index] for index in row]) for row in choices]
    return [fake.edits(fake.plan(each)) for each in formats]


@pytest.mark.parametrize(
    "rules",
    [QdqRules("affine"), QdqRules("symmetric", skips=True), QdqRules("affine", outputs=True, integer_bias=True)],
    ids=["plain", "tensorrt", "onnxruntime"],
)
def test_equal_to_whole_runs_bit_by_bit(network, rules):
    edits = drawn_edits(network, 30, rules)
    outputs = dict(outputs_of(network.traced, (network.x,), edits))
    assert sorted(outputs) == list(range(30))
    for index, each in enumerate(edits):
        assert torch.equal(outputs[index], network.traced.run((network.x,), each))


def test_a_change_costs_the_steps_behind_it_only(network, monkeypatch):
    rules = QdqRules("affine")
    fake = FakeQuantizer(network.traced, network.units, network.calibration, rules)
    texts = [["w8a8"] * len(network.units) for _ in network.units]
    for index, row in enumerate(texts):
        row[index] = "w4a16"
    edits = [fake.edits(fake.plan(formats_of(network, row))) for row in texts]
    ran = []
    for node in network.traced.steps:
        target = node.target
        counted = (  # noqa: E731
            lambda *args, target=target, name=node.name, **kwargs: ran.append(name) or target(*args, **kwargs)
        )
        monkeypatch.setattr(node, "_target_before", target, raising=False)
        node.target = counted
    try:
        list(outputs_of(network.traced, (network.x,), edits))
    finally:
        for node in network.traced.steps:
            node.target = node._target_before
    first, last = network.traced.steps[0].name, network.traced.steps[-1].name
    assert ran.count(last) == len(edits), "the last step depends on every change"
    assert ran.count(first) == 2, "the first layer ran in two formats"
    assert len(ran) < 0.75 * len(edits) * len(network.traced.steps)


def test_equal_policies_run_once_and_edits_of_the_input_count():
    torch.manual_seed(0)
    traced = TracedModel(Residual().eval(), (torch.randn(2, 3, 8, 8),))
    x = torch.randn(3, 3, 8, 8)
    (name,) = traced.inputs
    edits = [Edits(), Edits(sources={name: lambda t: t * 2}), Edits(), Edits(sources={name: lambda t: t * 0})]
    outputs = dict(outputs_of(traced, (x,), edits))
    assert outputs[0] is outputs[2]
    for index, factor in enumerate((1, 2, 1, 0)):
        torch.testing.assert_close(outputs[index], traced.run((x * factor,)))
