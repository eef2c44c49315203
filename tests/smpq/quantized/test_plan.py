import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.formats.integers import integer
from calib.network.clips import clipped
from smpq.quantized.plan import QdqRules, QuantPlan, plan_from_policy
from tests.smpq.problems import Traced, residual


@pytest.fixture(scope="module")
def network() -> Traced:
    return residual()


def plan_of(network: Traced, rules: QdqRules, default: str = "w8a8", **others: str) -> QuantPlan:
    return plan_from_policy(
        network.formats(default, **others), network.units, network.traced, network.calibration, rules
    )


def sources(plan: QuantPlan) -> set[str]:
    return {entry.tensor for entry in plan.tensors if entry.consumers is None}


def edges(plan: QuantPlan) -> dict[str, set[str]]:
    return {entry.tensor: set(entry.consumers) for entry in plan.tensors if entry.consumers is not None}


def call(network: Traced, path: str) -> str:
    return network.by_path[path].calls[0]


def relu(network: Traced, path: str) -> str:
    return network.after(call(network, path))


def named(network: Traced, operator: str) -> list[str]:
    return [
        node.name for node in network.traced.graph.nodes if node.op == "call_function" and operator in str(node.target)
    ]


def test_rule_1_quantises_the_input_of_integer_units_for_them_alone(network):
    plan = plan_of(network, QdqRules("affine"), a="w4a16", d="fp32")
    assert not sources(plan)
    expected: dict[str, set[str]] = {}
    for path in ("stem", "b", "skip", "c", "head"):
        expected.setdefault(network.by_path[path].inputs[0], set()).add(call(network, path))
    assert edges(plan) == expected, "`a` is weight-only and reads floats from the tensor that `skip` reads as integers"
    assert set(plan.weights) == {"stem", "a", "b", "skip", "c", "head"}
    assert plan.input_quantizer(network.by_path["a"], 0) is None
    assert plan.input_quantizer(network.by_path["skip"], 0) is not None


def test_units_that_read_one_tensor_share_its_pair(network):
    plan = plan_of(network, QdqRules("affine"))
    assert edges(plan)[network.by_path["a"].inputs[0]] == {call(network, "a"), call(network, "skip")}
    split = plan_of(network, QdqRules("affine"), skip="w8a4")
    pairs = [entry for entry in split.tensors if entry.tensor == network.by_path["a"].inputs[0]]
    assert {(entry.quantizer.bits, entry.consumers) for entry in pairs} == {
        (8, (call(network, "a"),)),
        (4, (call(network, "skip"),)),
    }


def test_a_float_policy_has_nothing_to_quantise(network):
    for rules in (QdqRules("affine"), QdqRules("affine", outputs=True), QdqRules("symmetric", skips=True)):
        plan = plan_of(network, rules, "fp32")
        assert plan.tensors == ()
        assert not plan.weights


def test_rules_2_and_4_with_outputs_integers_stay_integers(network):
    plan = plan_of(network, QdqRules("affine", outputs=True))
    (pool,) = named(network, "max_pool2d")
    first, second = named(network, "add.Tensor")
    expected = {
        relu(network, "stem"), pool, relu(network, "a"), call(network, "b"), call(network, "skip"),
        network.after(first), relu(network, "c"), call(network, "d"), network.after(second),
    }  # fmt: skip
    # the second add is read by a mean, which computes in floats: the head gets a pair of its own
    assert sources(plan) == expected
    assert edges(plan) == {
        network.by_path["stem"].inputs[0]: {call(network, "stem")},
        network.by_path["head"].inputs[0]: {call(network, "head")},
    }


def test_a_move_keeps_the_grid_of_its_source(network):
    plan = plan_of(network, QdqRules("affine", outputs=True))
    quantizers = {entry.tensor: entry.quantizer for entry in plan.tensors}
    (pool,) = named(network, "max_pool2d")
    assert quantizers[pool] is quantizers[relu(network, "stem")]
    assert plan.input_quantizer(network.by_path["a"], 0) is quantizers[pool]


def test_an_add_with_a_float_operand_stays_float(network):
    plan = plan_of(network, QdqRules("affine", outputs=True), skip="fp32")
    first, _ = named(network, "add.Tensor")
    assert call(network, "skip") not in sources(plan)
    assert network.after(first) not in sources(plan)
    assert call(network, "b") in sources(plan)


def test_a_weight_only_or_linear_layer_writes_floats(network):
    plan = plan_of(network, QdqRules("affine", outputs=True), c="w4a16")
    assert relu(network, "c") not in sources(plan)
    assert call(network, "head") not in sources(plan)
    assert edges(plan)[relu(network, "c")] == {call(network, "d")}


def test_an_add_that_no_integer_unit_reads_stays_float():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    network = Traced(Sum(), torch.randn(4, 2, 3, 3))
    assert sources(plan_of(network, QdqRules("affine", outputs=True))) == {call(network, "a"), call(network, "b")}


def test_rule_3_the_skip_is_read_as_integers_where_it_is_integer_anyway(network):
    first, second = named(network, "add.Tensor")
    identity = network.after(first)
    plan = plan_of(network, QdqRules("affine", skips=True))
    assert not sources(plan)
    assert edges(plan)[identity] == {call(network, "c"), second}
    assert edges(plan)[call(network, "skip")] == {first}, "of two integer branches the shorter one, for the add alone"
    assert call(network, "b") not in edges(plan)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            x = torch.sin(x)
            return self.b(F.relu(self.a(x))) + x

    torch.manual_seed(0)
    block = Traced(Block(), torch.randn(4, 2, 3, 3), "symmetric")
    (add,) = named(block, "add.Tensor")
    tensor = block.by_path["a"].inputs[0]
    assert edges(plan_of(block, QdqRules("symmetric", skips=True)))[tensor] == {call(block, "a"), add}
    assert edges(plan_of(block, QdqRules("symmetric")))[tensor] == {call(block, "a")}
    # without an integer convolution in front of the add, or without an integer layer on the skip, there is nothing to
    # fuse
    assert edges(plan_of(block, QdqRules("symmetric", skips=True), b="w4a16"))[tensor] == {call(block, "a")}
    assert tensor not in edges(plan_of(block, QdqRules("symmetric", skips=True), a="w4a16"))


def test_rule_3_a_skip_that_only_the_add_reads_has_the_bits_of_the_layer_that_adds(network):
    first, _ = named(network, "add.Tensor")
    rules = QdqRules("affine", skips=True)
    (entry,) = (entry for entry in plan_of(network, rules, b="w4a4").tensors if entry.tensor == call(network, "skip"))
    assert entry.consumers == (first,)
    assert entry.quantizer.bits == 4
    assert entry.quantizer == network.calibration.quantizer(entry.tensor, integer(4), "affine"), "its own range"
    # a float branch on either side: the add stays float, the identity of the other block is as before
    for path in ("b", "skip"):
        plan = plan_of(network, rules, **{path: "w8a16"})
        assert call(network, "skip") not in edges(plan)
        assert call(network, "b") not in edges(plan)


def test_rule_3_a_join_in_float_reads_floats(network):
    first, second = named(network, "add.Tensor")
    formats = network.formats("w8a8")
    rules = QdqRules("affine", skips=True)
    kept = plan_from_policy(formats, network.units, network.traced, network.calibration, rules, frozenset({first}))
    assert call(network, "skip") not in edges(kept)
    assert second in edges(kept)[network.after(first)]


def test_rule_3_a_moved_skip_is_on_the_grid_of_what_the_layer_reads():
    class Strided(nn.Module):
        """The shortcut of He et al.'s option A: every second pixel, and zeros for the new channels."""

        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.b(F.relu(self.a(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))

    torch.manual_seed(0)
    network = Traced(Strided(), torch.randn(4, 2, 6, 6), "symmetric")
    plan = plan_of(network, QdqRules("symmetric", skips=True))
    (add,) = named(network, "add.Tensor")
    (pad,) = named(network, "pad")
    quantizers = {entry.tensor: entry.quantizer for entry in plan.tensors}
    assert edges(plan)[pad] == {add}
    assert quantizers[pad] is quantizers[relu(network, "stem")]


@pytest.mark.parametrize(
    ("pad", "kept"),
    [
        (lambda x: F.pad(x, (1, 1, 1, 1)), True),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=0.0), True),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=0.3), False),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), True),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), True),
        (lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 2, 6, 6), True),
        (lambda x: F.avg_pool2d(x, 2), False),
    ],
    ids=["zeros", "zero", "a value", "reflect", "replicate", "reshape", "average"],
)
def test_what_keeps_the_grid(pad, kept):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.b(pad(self.a(x)))

    torch.manual_seed(0)
    network = Traced(Padded(), torch.randn(4, 2, 6, 6))
    plan = plan_of(network, QdqRules("affine", outputs=True))
    tensor = network.by_path["b"].inputs[0]
    assert (tensor in sources(plan)) is kept
    assert (tensor in edges(plan)) is not kept
    quantizer = plan.input_quantizer(network.by_path["b"], 0)
    if kept:
        assert quantizer is plan.tensors[0].quantizer
        # on the grid already: quantising what the operator makes changes nothing
        values = quantizer(network.x)
        torch.testing.assert_close(quantizer(pad(values)), pad(values))


def test_a_relu_counts_as_the_result_only_when_nothing_else_reads_the_sum(network):
    nodes = network.traced.nodes
    assert clipped(nodes[call(network, "a")]).name == relu(network, "a")
    assert clipped(nodes[call(network, "b")]).name == call(network, "b")

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = self.a(x)
            return F.relu(y) + y

    both = Traced(Both(), torch.randn(4, 2, 3, 3))
    assert clipped(both.traced.nodes[call(both, "a")]).name == call(both, "a")


def test_the_scheme_reaches_every_quantiser():
    network = residual("symmetric")
    plan = plan_of(network, QdqRules("symmetric"))
    assert plan.tensors
    assert all(entry.quantizer.signed and entry.quantizer.zero_point == 0 for entry in plan.tensors)


class Chain(nn.Module):
    def __init__(self, between=nn.Identity, last=nn.Identity):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.between, self.last = between(), last()

    def forward(self, x):
        return self.last(self.c(F.relu(self.between(self.b(F.relu(self.a(x)))))))


def test_linear_layers_in_a_row_hand_on_integers_and_add_their_biases_in_integers():
    torch.manual_seed(0)
    network = Traced(Chain(), torch.randn(16, 6))
    plan = plan_of(network, QdqRules("affine", outputs=True))
    assert sources(plan) == {relu(network, "a"), relu(network, "b")}
    assert set(edges(plan)) == {network.by_path["a"].inputs[0]}
    assert plan.gemms == {call(network, path) for path in "abc"}
    partly = plan_of(network, QdqRules("affine", outputs=True), b="fp32")
    assert not sources(partly)
    assert partly.gemms == {call(network, "c")}
    assert not plan_of(network, QdqRules("affine")).gemms


@pytest.mark.parametrize("between", [nn.Tanh, lambda: nn.Unflatten(1, (1, 8))])
def test_another_reader_or_several_rows_end_the_row(between):
    torch.manual_seed(0)
    network = Traced(Chain(between), torch.randn(16, 6))
    plan = plan_of(network, QdqRules("affine", outputs=True))
    handed = relu(network, "a") in sources(plan)
    assert handed
    assert call(network, "b") not in {entry.tensor for entry in plan.tensors}
