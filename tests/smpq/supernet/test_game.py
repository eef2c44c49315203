import numpy as np
import pytest
import torch

from calib.task import Batch
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.supernet.game import SupernetGame
from smpq.supernet.settings import GameSettings
from tests.smpq.supernets import Task, batch_of, supernet


@pytest.fixture
def net():
    made = supernet()
    torch.manual_seed(3)
    with torch.no_grad():
        for alpha in made.alphas:
            alpha.normal_()
    return made


def members(net, *names):
    """Everything but what is named."""
    return np.array([str(operation) not in names for operation in net.operations])


def output(game, row):
    batch = Task().calibration()[0]
    return game._traced.run(batch.inputs, game.edits(row))


def test_the_grand_coalition_is_the_supernet(net):
    batch = Task().calibration()[0]
    with torch.no_grad():
        expected = net.graph.run(batch.inputs)
    assert torch.allclose(output(SupernetGame(net, [batch]), members(net)), expected, atol=1e-4)


def test_one_survivor_a_row_is_that_quantised_format(net):
    game = SupernetGame(net, Task().calibration())
    row = np.array([operation.name in {"w4", "a8"} for operation in net.operations])
    fake = FakeQuantizer(net.subject.traced, net.space.units, net.subject.calibration, QdqRules("affine"))
    formats = net.space.uniform(net.space.formats["stem"][-1]).by_unit(net.space.groups)
    batch = Task().calibration()[0]
    assert torch.allclose(output(game, row), fake.run(formats, batch.inputs), atol=1e-3)


def test_masked_operations_do_not_influence_the_output(net):
    row = members(net, "deep:w2", "head:a4")
    before = output(SupernetGame(net, Task().calibration()), row)
    with torch.no_grad():
        net.weights["deep"].candidates[0].step.mul_(3)
        next(
            mixed for tensor, mixed in net.inputs.items() if net.space.groups[2].units[0].inputs[0] == tensor
        ).candidates[0].step.mul_(3)
    game = SupernetGame(net, Task().calibration())
    assert torch.equal(output(game, row), before)
    assert not torch.equal(output(game, members(net)), before)


def test_shares_of_the_survivors_sum_to_one_or_stay_as_they_were(net):
    row = members(net, "stem:w2")
    shares = net.shares()["stem", "weight"]
    assert SupernetGame(net, Task().calibration())._masked(row)["stem", "weight"] == [0.0, 1.0]
    shrunk = SupernetGame(net, Task().calibration(), GameSettings(renormalise=False))
    assert shrunk._masked(row)["stem", "weight"] == [0.0, shares[1]]


def test_nothing_left_means_the_narrowest(net):
    game = SupernetGame(net, Task().calibration(), GameSettings(("loss",)))
    nothing, narrowest = members(net, "stem:w2", "stem:w4"), members(net, "stem:w4")
    values = game(np.array([nothing, narrowest]))
    assert values[0] == values[1]


def test_values_together_are_values_one_by_one(net):
    rows = np.random.default_rng(0).random((8, len(net.operations))) < 0.7
    together = SupernetGame(net, Task().calibration(), GameSettings(("metric", "loss", "kl"))).measure(rows)
    for column, value in enumerate(("metric", "loss", "kl")):
        game = SupernetGame(net, Task().calibration(), GameSettings((value,)))
        assert [float(game(row[None])[0]) for row in rows] == pytest.approx(together[:, column].tolist())


def test_parts_of_the_samples_make_up_the_whole(net):
    batches = [batch_of(1, 32), batch_of(2, 13)]
    rows = np.random.default_rng(0).random((3, len(net.operations))) < 0.7
    game = SupernetGame(net, batches, GameSettings(("metric", "loss")))
    whole, *parts = np.split(game.with_parts(rows), 9, axis=1)
    assert np.array_equal(whole, game.measure(rows))
    counts = [6] * 5 + [5] * 3
    assert sum(count * part for count, part in zip(counts, parts, strict=True)) / 45 == pytest.approx(whole)
    own = [x[3::8] for x in (torch.cat([each.inputs[0] for each in batches]), torch.cat([b.target for b in batches]))]
    alone = SupernetGame(net, [Batch((own[0],), own[1])], GameSettings(("metric", "loss")))
    assert alone.measure(rows) == pytest.approx(parts[3], abs=1e-6)


def test_statistics_are_read_and_never_updated(net):
    before = {name: tensor.clone() for name, tensor in net.graph.state_dict().items()}
    SupernetGame(net, Task().calibration())(np.ones((1, len(net.operations)), bool))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.graph.state_dict().items())


def test_the_cost_is_subtracted(net):
    rows = np.array([members(net), members(net, "deep:w4")])
    free = SupernetGame(net, Task().calibration())(rows)
    game = SupernetGame(net, Task().calibration(), GameSettings(cost_weight=0.5))
    costs = [float(net.complexity(game._masked(row))) / (4 * 8) for row in rows]
    assert (free - game(rows)).tolist() == pytest.approx([0.5 * cost for cost in costs])
    assert costs[1] < costs[0]
