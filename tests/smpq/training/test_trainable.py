import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.network.fold import trace_folded
from calib.network.units import find_units
from smpq.training.lsq import LearnedActivation, LearnedWeight
from smpq.training.plan import attach_plan
from smpq.training.trainable import TrainableGraph
from tests.calib.network.test_fold import with_statistics
from tests.calib.network.test_norms import ForeignNorm, LayerWithNorm, NormAndActivation
from tests.smpq.tunable import batch_of, network, tunable


def test_without_quantisers_it_is_the_folded_model():
    given = tunable()
    assert {pair.layer for pair in given.folded} == {"stem", "deep", "hidden"}
    graph = given.graph().eval()
    before = {name: tensor.clone() for name, tensor in given.original.state_dict().items()}
    inputs = batch_of(5).inputs
    expected = given.traced.run(inputs)
    with torch.no_grad():
        torch.testing.assert_close(graph.run(inputs), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(graph.reference(inputs), expected, rtol=1e-4, atol=1e-4)
    graph.train()
    graph.run(inputs).sum().backward()
    for name, tensor in given.original.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model that was given changed"


def test_in_training_mode_it_is_the_original_model_in_training_mode():
    given = tunable()
    graph = given.graph().train()
    model = network().train()
    model.last_norm.eval()  # it did not fold, and what does not fold stays as it was traced
    inputs = batch_of(5).inputs
    for _ in range(2):  # the second pass sees what the first one did to the statistics
        actual, expected = graph.run(inputs), model(*inputs)
        with torch.no_grad():  # a gain of zero is the one thing that cannot be folded back
            torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
    deep = next(iter(graph.groups().others))
    assert deep.requires_grad


def test_folding_gives_back_what_it_computes():
    given = tunable()
    graph = given.graph()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for group in vars(graph.groups()).values() for p in group], 0.01)
    for seed in range(5):
        graph.run(batch_of(seed).inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        graph.project()
    graph.eval()
    model = copy.deepcopy(given.traced.module)
    state = graph.fold()
    assert state.keys() == dict(model.named_parameters()).keys()
    model.load_state_dict({**model.state_dict(), **state})
    inputs = batch_of(9).inputs
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), graph.run(inputs), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(*inputs), given.traced.run(inputs), atol=0.01), "training changed nothing"


def test_every_parameter_is_in_one_group_and_has_a_gradient():
    given = tunable()
    graph = given.graph()
    attach_plan(graph, given.fake.plan(given.formats("w4a4")))
    groups = graph.groups()
    parameters = [*groups.weights, *groups.others, *groups.quantizers]
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(graph.parameters()))
    assert len(groups.weights) == 6
    graph.train()
    graph.run(batch_of(1).inputs).square().sum().backward()
    assert all(p.grad is not None for p in parameters)
    steps = [m.step for m in graph.modules() if isinstance(m, (LearnedWeight, LearnedActivation))]
    assert {id(p) for p in groups.quantizers} == {id(p) for p in steps}


def test_statistics_are_averages_over_the_batches():
    given = tunable()
    graph = given.graph().eval()
    batches = [batch_of(seed).inputs for seed in range(3)]
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    graph.estimate_statistics(batches)
    model = network().train()
    for norm in (model.stem_norm, model.deep_norm, model.hidden_norm):
        norm.reset_running_stats()
        norm.momentum = None
    model.last_norm.eval()
    with torch.no_grad():
        for inputs in batches:
            model(*inputs)
    after = graph.state_dict()
    means = [after[name] for name in after if name.endswith("running_mean")]
    sign = torch.tensor([1.0, -1.0] * 3)
    live = [0, 1, 3, 4, 5]  # the channel whose gain was zero is another one
    torch.testing.assert_close(means[0][live], (model.stem_norm.running_mean * sign)[live], rtol=1e-4, atol=1e-4)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if "running_" in name}
    assert not graph.training


def test_a_graph_that_looks_at_the_memory_keeps_its_order():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4 * 4 * 4, 3)

        def forward(self, x):
            return self.head(self.conv(x).view(x.shape[0], -1))

    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    traced, folded = trace_folded(Viewed().eval(), (x[:2],))
    units, _ = find_units(traced)
    graph = TrainableGraph(traced, units, traced.module, folded)
    with torch.no_grad():
        torch.testing.assert_close(graph.run((x,)), traced.run((x,)))


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_of_other_classes_are_trained_with_their_layers(bias, trains):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), NormAndActivation(4), LayerWithNorm(4, 5, bias=bias))
    original = with_statistics(layers)
    x = torch.randn(6, 3, 8, 8)
    traced, folded = trace_folded(original, (x[:2],))
    units, _ = find_units(traced)
    graph = TrainableGraph(traced, units, original, folded)
    assert len(graph._norms) == 2
    with torch.no_grad():
        for model in (graph, original):
            model.train(trains)
        torch.testing.assert_close(graph.run((x,)), original(x), rtol=1e-3, atol=1e-4)
        graph.eval()
        model = copy.deepcopy(traced.module)
        model.load_state_dict({**model.state_dict(), **graph.fold()})
        torch.testing.assert_close(model(x), graph.run((x,)), rtol=1e-4, atol=1e-5)


def test_a_norm_that_is_no_batchnorm_is_trained_as_a_part_of_its_layer():
    original = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), ForeignNorm(4)))
    x = torch.randn(6, 3, 8, 8)
    traced, folded = trace_folded(original, (x[:2],))
    units, _ = find_units(traced)
    graph = TrainableGraph(traced, units, original, folded).train()
    assert len(folded) == 1
    assert not graph._norms
    with torch.no_grad():
        torch.testing.assert_close(graph.run((x,)), original(x), rtol=1e-3, atol=1e-4)


class OwnLayers(nn.Module):
    """Multiplies by parameters of its own, a norm behind the last product."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4)) if twice else None
        self.bias = nn.Parameter(torch.randn(6)) if twice else None
        self.kernel = nn.Parameter(torch.randn(6, 6 if twice else 4))
        self.offset = nn.Parameter(torch.randn(6))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        if self.weight is not None:
            x = F.linear(x, self.weight, self.bias).relu()
        return self.norm(F.linear(x, self.kernel, self.offset))


@pytest.mark.parametrize(("twice", "unfolded"), [(True, False), (False, True)])
def test_a_norm_is_put_back_behind_the_layer_that_took_it_in_or_nowhere(twice, unfolded):
    torch.manual_seed(0)
    model, x = nn.Sequential(OwnLayers(twice=twice)).eval(), torch.randn(8, 4)
    traced, folded = trace_folded(model, (x,))
    assert [(pair.norm, pair.layer) for pair in folded] == [("0.norm", "0")]
    units, _ = find_units(traced)
    graph = TrainableGraph(traced, units, model, folded).train()
    assert graph.normalises == unfolded
    expected = model.train()(x) if unfolded else model(x)
    torch.testing.assert_close(graph.run((x,)), expected, rtol=1e-4, atol=1e-4)
