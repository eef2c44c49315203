import pytest
import torch

from calib.errors import UserError
from smpq.supernet.network import Operation, operations_of
from smpq.training.trainable import TrainableGraph
from tests.smpq.supernets import FORMATS, Task, subject, supernet


def test_candidates_are_the_widths_of_the_formats():
    net = supernet("w4a8,w2a8,w3a16,fp32")
    assert [operation.name for operation in net.rows["stem", "weight"]] == ["w2", "w3", "w4", "w32"]
    assert [(operation.name, operation.bits) for operation in net.rows["stem", "activation"]] == [
        ("a8", 8),
        ("a16", 16),
        ("a32", 32),
    ]
    assert len(net.operations) == 3 * 7
    formats = net.space.formats["stem"]
    assert [operations_of(chosen) for chosen in formats] == [("w4", "a8"), ("w2", "a8"), ("w3", "a16"), ("w32", "a32")]


def test_one_width_is_no_operation():
    net = supernet("w2a8,w4a8")
    assert {operation.side for operation in net.operations} == {"weight"}
    assert net.operations[0] == Operation("stem", "weight", "w2", 2)
    with pytest.raises(UserError, match="no layer has more than one format"):
        supernet("w4a8")


def test_it_starts_as_the_mean_of_its_candidates():
    net = supernet()
    shares = net.shares()
    assert all(row == pytest.approx([0.5, 0.5]) for row in shares.values())
    assert len(net.alphas) == 6
    assert len(net.steps()) == 3 * 4


def test_a_single_format_is_the_plain_quantised_network():
    made = subject("w3a8")
    plain = TrainableGraph(made.traced, made.space.units, made.original, made.folded)
    many = supernet("w2a8,w3a8")
    with torch.no_grad():
        many.choices["stem", "weight"].alpha.copy_(torch.tensor([-200.0, 0.0]))
    stem, mixed = plain.units[0], many.weights["stem"]
    assert torch.equal(mixed(many.graph.weights["stem"]), mixed.candidates[1](many.graph.weights["stem"]))
    assert stem.path == "stem"


def test_complexity_is_the_expected_bit_operations_of_a_mac():
    net = supernet()
    assert float(net.complexity().detach()) == pytest.approx(3 * 6)
    one = {key: [0.0, 1.0] for key in net.rows}
    assert float(net.complexity(one)) == pytest.approx(4 * 8)
    one["stem", "weight"] = [1.0, 0.0]
    macs = [sum(unit.macs for unit in group.units) for group in net.space.groups]
    assert float(net.complexity(one)) == pytest.approx((2 * 8 * macs[0] + 4 * 8 * (sum(macs) - macs[0])) / sum(macs))
    net.complexity().backward()
    assert net.choices["stem", "weight"].alpha.grad[1] > 0 > net.choices["stem", "weight"].alpha.grad[0]


def test_every_parameter_gets_a_gradient():
    net, batch = supernet(), Task().calibration()[0]
    net.graph.train()
    Task().loss(net.graph.run(batch.inputs), batch.target).mean().backward()
    for parameter in (*net.alphas, *net.steps(), *net.graph.groups().weights):
        assert float(parameter.grad.abs().sum()) > 0


def test_formats_are_the_default_of_the_tests():
    assert [str(chosen) for chosen in supernet().space.formats["stem"]] == FORMATS.split(",")
