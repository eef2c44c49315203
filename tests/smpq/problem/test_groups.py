import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import UserError
from calib.formats.format import FP32
from calib.network.graph import TracedModel
from calib.network.units import find_units
from smpq.problem.groups import find_groups, space_from_formats
from tests.smpq.problems import W4A16, W8A8, residual


def members(model: nn.Module, *shape: int) -> list[list[str]]:
    traced = TracedModel(model.eval(), (torch.randn(2, *shape),))
    groups = find_groups(traced, find_units(traced)[0])
    assert all(group.name == group.units[0].path for group in groups)
    return [[unit.path for unit in group.units] for group in groups]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.out(attended) + x


def test_query_key_and_value_share_a_format():
    assert members(Attention(), 3, 4) == [["q", "k", "v"], ["out"]]


def test_both_operands_of_an_add_and_whoever_reads_the_same_tensor():
    network = residual()
    groups = find_groups(network.traced, network.units)
    # `a` and `skip` read the pooled tensor, `b` and `skip` meet in the add; the second block adds what is no layer's
    # result
    assert [[unit.path for unit in group.units] for group in groups] == [
        ["stem"],
        ["a", "b", "skip"],
        ["c"],
        ["d"],
        ["head"],
    ]


def test_an_operation_before_the_add_unties():
    class Activated(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            return F.relu(self.a(x)) + self.b(torch.sin(x))

    assert members(Activated(), 4) == [["stem"], ["a"], ["b"]]


def test_ties_are_transitive():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            y = torch.sin(x)
            return self.a(x) + self.b(y), self.c(y)

    assert members(Chain(), 4) == [["a", "b", "c"]]


def test_a_layer_that_runs_twice_is_tied_to_what_each_call_meets():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            return self.a(torch.sin(y)) + self.b(torch.cos(y))

    assert members(Twice(), 4) == [["a", "b"]]


def test_the_space_keeps_what_is_allowed_and_says_what_was_refused():
    network = residual()
    groups = find_groups(network.traced, network.units)

    def allowed(unit, chosen):
        if unit.path == "head" and not chosen.is_float:
            return "the head stays float"
        return "no small kernels" if unit.path == "skip" and chosen == W4A16 else None

    space, refused = space_from_formats(groups, (W8A8, W4A16), FP32, allowed)
    assert space.formats == {
        "stem": (W8A8, W4A16), "a": (W8A8,), "c": (W8A8, W4A16), "d": (W8A8, W4A16), "head": (FP32,),
    }  # fmt: skip
    assert refused == {
        "a: w4a16": "no small kernels", "head: w8a8": "the head stays float", "head: w4a16": "the head stays float",
    }  # fmt: skip
    assert space.reference == FP32


def test_of_a_choice_a_group_gets_the_first_that_it_can_have():
    network = residual()
    groups = find_groups(network.traced, network.units)

    def allowed(unit, chosen):
        return "no such kernel" if (unit.path == "a" and chosen == W8A8) or unit.path == "head" else None

    space, refused = space_from_formats(groups, (W8A8, W4A16, FP32), FP32, allowed, choices=[(W8A8, W4A16), (FP32,)])
    assert space.formats["stem"] == (W8A8, FP32)
    assert space.formats["a"] == (W4A16, FP32)
    assert set(refused) == {f"head: {chosen}" for chosen in (W8A8, W4A16, FP32)}  # only where nothing is left


def test_a_space_without_a_choice_is_a_user_error():
    network = residual()
    groups = find_groups(network.traced, network.units)
    with pytest.raises(UserError, match="no kernel"):
        space_from_formats(groups, (W8A8,), FP32, lambda unit, chosen: "no kernel")
    space, _ = space_from_formats(groups, (FP32,), FP32, lambda unit, chosen: None)
    assert space.size() == 1
