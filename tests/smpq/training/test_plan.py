import pytest
import torch

from smpq.quantized.plan import QdqRules
from smpq.training.plan import attach_plan
from smpq.training.settings import STARTS
from tests.smpq.tunable import batch_of, tunable

RULES = [
    QdqRules("affine"),
    QdqRules("affine", outputs=True),
    QdqRules("symmetric", skips=True),
]


@pytest.mark.parametrize("rules", RULES, ids=["inputs", "outputs", "skips"])
@pytest.mark.parametrize("start", STARTS)
def test_a_plan_is_carried_out_as_the_search_does(rules, start):
    given = tunable(rules)
    for texts in ({"default": "w8a8"}, {"default": "w3a8", "deep": "w4a4", "plain": "fp32", "head": "w4a16b2"}):
        plan = given.fake.plan(given.formats(**texts))
        graph = given.graph().eval()
        attach_plan(graph, plan, start=start)
        inputs = batch_of(5).inputs
        expected = given.traced.run(inputs, given.fake.edits(plan))
        with torch.no_grad():
            actual = graph.run(inputs)
        quantized = {path: graph.quantized(path) for path in plan.weights}
        if start == "float":
            assert any(not torch.equal(quantized[path].values, plan.weights[path].values) for path in quantized)
            continue
        for path, weight in quantized.items():
            # a channel of zeros has any step
            assert torch.equal(weight.values, plan.weights[path].values), path
            torch.testing.assert_close(weight.scale, plan.weights[path].scale)
        # a value on the edge of a step may fall to the other side of it
        assert (actual - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_nearby_weights_are_nearer_to_the_float_ones():
    given = tunable()
    plan = given.fake.plan(given.formats("w2a8"))
    distance = {}
    for start in STARTS:
        graph = given.graph()
        float_weights = {path: weight.detach().clone() for path, weight in graph.weights.items()}
        attach_plan(graph, plan, start=start)
        distance[start] = sum(
            float((graph.weights[path].detach() - weight).square().sum()) for path, weight in float_weights.items()
        )
    assert distance["float"] == 0
    assert 0 < distance["nearby"] < distance["rounded"]


def test_a_grid_that_moves_along_with_its_tensor_is_one_step():
    given = tunable(QdqRules("affine", outputs=True))
    plan = given.fake.plan(given.formats("w8a8"))
    graph = given.graph()
    named = attach_plan(graph, plan, learn_activations=True)
    pooled = next(name for name, _ in named if "max_pool" in name)
    (source,) = [node.name for node in given.traced.producer(pooled).all_input_nodes]
    assert named[pooled, 8] is named[source, 8]
