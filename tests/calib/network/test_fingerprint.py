"""A fingerprint changes with everything that decides a result, and with nothing else."""

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.batches import content_hash
from calib.network.fingerprint import Fingerprint, fingerprint
from calib.network.graph import TracedModel
from calib.task import Batch

VERSIONS = {"torch": "2.13.0"}


class Network(nn.Module):
    """Small enough to be traced in many variants."""

    def __init__(self, then):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.then = then

    def forward(self, x):
        return self.then(self.norm(self.layer(x)))


def batches(target=None):
    data = torch.arange(16.0).reshape(4, 4)
    return [Batch((data,), target if target is not None else torch.zeros(4))]


def of(then=F.relu, data=None, edit=None, versions=VERSIONS, samples=2):
    model = Network(then).eval()
    if edit is not None:
        with torch.no_grad():
            edit(model)
    return fingerprint(
        TracedModel(model, (torch.randn(samples, 4),)), content_hash(batches() if data is None else data), versions
    )


FUNCTIONS = {
    "operator": F.gelu,
    "argument": lambda y: F.leaky_relu(y, 0.1),
    "other_argument": lambda y: F.leaky_relu(y, 0.2),
    "keyword": lambda y: F.gelu(y, approximate="tanh"),
    "constant": lambda y: F.relu(y) + torch.tensor([1.0, 2, 3, 4]),
    "other_constant": lambda y: F.relu(y) + torch.tensor([1.0, 2, 3, 5]),
    "number": lambda y: F.relu(y) + 1,
    "other_number": lambda y: F.relu(y) + 1.0000001,
    "operands": lambda y: F.relu(y) - y,
    "other_operands": lambda y: y - F.relu(y),
    "type": lambda y: F.relu(y.double()),
    "nesting": lambda y: (F.relu(y),),
    "output": lambda y: (F.relu(y), y),
}


def test_every_function_has_a_graph_of_its_own():
    found = {name: of(then) for name, then in {"relu": F.relu, **FUNCTIONS}.items()}
    assert len({each.graph for each in found.values()}) == len(found)
    assert len({each.key for each in found.values()}) == len(found)
    assert {(each.weights, each.data) for each in found.values()} == {(found["relu"].weights, found["relu"].data)}
    assert found["relu"].differences(found["operator"]) == ("the model's forward()",)


@pytest.mark.slow
def test_the_same_work_has_the_same_fingerprint_in_another_process(warm):
    said, _ = warm.run("tests.expression", __name__, "of(FUNCTIONS['constant']).key").communicate()
    assert said.strip() == of(FUNCTIONS["constant"]).key


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (lambda model: model.layer.weight[0, 0].add_(1e-6), ("the weights",)),
        (lambda model: model.norm.running_var[1].mul_(1.001), ("the weights",)),
        (lambda model: model.norm.num_batches_tracked.add_(7), ()),
        (lambda model: setattr(model.norm, "eps", 1e-4), ("the model's forward()",)),
    ],
)
def test_weights(edit, changed):
    assert of().differences(of(edit=edit)) == changed


TARGETS = [None, 1, 2, 1.0, "1", b"1", True, [1], (1,), [[1]], {"a": 1}, {"b": 1}, {"a": torch.ones(2)},
           {"a": torch.zeros(2)}, np.ones(2), np.ones(3), np.float32(1), [None], [1, 2], [2, 1]]  # fmt: skip


@pytest.fixture(scope="module")
def traced():
    return TracedModel(Network(F.relu).eval(), (torch.randn(2, 4),))


def with_target(traced, target):
    return fingerprint(traced, content_hash([Batch(batches()[0].inputs, target)]), VERSIONS)


def test_data(traced):
    inputs = batches()[0].inputs
    found = [with_target(traced, target) for target in TARGETS]
    assert len({each.data for each in found}) == len(TARGETS)
    assert found == [with_target(traced, target) for target in TARGETS]
    other = inputs[0].clone()
    other[3, 3] += 1e-6
    changed = fingerprint(traced, content_hash([Batch((other,), torch.zeros(4))]), VERSIONS)
    assert fingerprint(traced, content_hash(batches()), VERSIONS).differences(changed) == ("the calibration data",)


BRAIN = torch.ones(2, 2, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.tensor(3), torch.tensor(4)),
        (BRAIN.t(), BRAIN.t() * 2),
        (torch.tensor([True, False]), torch.tensor([True, True])),
        (torch.zeros(2, 0), torch.zeros(0, 2)),
        (torch.ones(2) * 1j, torch.ones(2) * 2j),
        (torch.ones(2), torch.ones(2).double()),
    ],
)
def test_tensors_of_every_type_are_read(traced, one, two):
    assert with_target(traced, one).data != with_target(traced, two).data


def test_versions_are_named():
    one, two = of(), of(versions={"torch": "2.14.0", "onnx": "1.20"})
    assert one.differences(two) == ("onnx none -> 1.20", "torch 2.13.0 -> 2.14.0")
    assert one.key != two.key


def test_it_survives_json():
    one = of()
    assert msgspec.json.decode(msgspec.json.encode(one), type=Fingerprint) == one


def test_a_version_of_somebody_elses_file_is_one_line():
    made, now = (Fingerprint("", "", "", "", "", {"smpq": text}) for text in ("\x1b[2J\n0", "1"))
    assert made.differences(now) == (r"smpq \x1b[2J\n0 -> 1",)
