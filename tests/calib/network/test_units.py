import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.network.graph import TracedModel
from calib.network.units import Skipped, Unit, find_units


def units_of(model: nn.Module, *shape: int) -> tuple[dict[str, Unit], dict[str, Skipped]]:
    units, skipped = find_units(TracedModel(model.eval(), (torch.randn(2, *shape),)))
    assert len({unit.path for unit in units}) == len(units)
    return {unit.path: unit for unit in units}, {entry.path: entry for entry in skipped}


def test_operators_sizes_and_macs():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 4, 1, groups=2, bias=False),
        nn.Flatten(2),
        nn.Conv1d(4, 6, 3),
        nn.Linear(7, 5),
        nn.Flatten(),
        nn.Linear(30, 3),
    )
    units, skipped = units_of(model, 4, 6, 6)
    assert not skipped
    assert {path: unit.operator for path, unit in units.items()} == {
        "0": "conv2d",
        "1": "depthwise_conv2d",
        "2": "grouped_conv2d",
        "4": "conv1d",
        "5": "linear_nd",
        "7": "linear",
    }
    assert {path: unit.macs for path, unit in units.items()} == {
        "0": 3 * 3 * 8 * 4 * 9,
        "1": 3 * 3 * 8 * 9,
        "2": 3 * 3 * 4 * 4,
        "4": 7 * 6 * 4 * 3,
        "5": 6 * 7 * 5,
        "7": 30 * 3,
    }
    assert (units["1"].in_features, units["1"].out_features, units["1"].parameters) == (9, 8, 72)
    assert units["2"].bias is None
    assert units["0"].bias is not None
    assert units["0"].weight_shape == (8, 4, 3, 3)


def test_a_module_that_runs_twice_is_one_unit_with_two_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(F.relu(self.layer(x)))

    units, _ = units_of(Twice(), 4)
    unit = units["layer"]
    assert (len(unit.calls), len(unit.inputs), unit.macs, unit.parameters) == (2, 2, 32, 16)
    assert unit.bias is not None
    assert unit.aliases == ()


class Tied(nn.Module):
    def __init__(self, share: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight if share else nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


def test_tied_modules_are_one_unit():
    for share in (True, False):  # one parameter, or two over the same memory
        units, _ = units_of(Tied(share), 4)
        assert list(units) == ["a"]
        assert units["a"].aliases == ("b",)
        assert units["a"].bias is None, "the two calls add different biases"


def test_a_parameter_used_by_a_function_goes_by_its_own_name():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.weight2, self.inner = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))

        def forward(self, x):
            return F.linear(F.linear(F.linear(x, self.weight), self.weight2), self.inner)

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.free, self.layer = Gate(), nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(self.gate(x), self.free) + F.linear(x, self.layer.weight)

    units, _ = units_of(Parent(), 4)
    assert list(units) == ["gate", "gate.weight2", "gate.inner", "free", "layer"]


def test_attention_has_its_two_projections():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    units, _ = units_of(Attention(), 3, 8)
    assert list(units) == ["attention.in_proj_weight", "attention.out_proj"]


def test_an_embedding_and_the_head_that_is_tied_to_it_are_one_unit():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.middle, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.middle(self.embedding(x)))

    units, skipped = find_units(TracedModel(Language().eval(), (torch.randint(0, 7, (2, 3)),)))
    assert [unit.path for unit in units] == ["embedding", "middle"]
    tied = units[0]
    assert (tied.operator, len(tied.calls), len(tied.gathers)) == ("tied_embedding", 1, 1)
    assert (tied.aliases, tied.macs, skipped) == (("head",), 3 * 7 * 4, ())


def test_an_embedding_multiplies_nothing():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.read, self.head = nn.Embedding(7, 4), nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.words(x) + self.words(x + 1) + self.read(x)) + self.read.weight.sum()

    units, skipped = find_units(TracedModel(Words().eval(), (torch.randint(0, 6, (2, 3)),)))
    words = units[0]
    assert (words.operator, words.calls, words.inputs, len(words.gathers), words.macs) == ("embedding", (), (), 2, 0)
    assert [(entry.path, entry.reason) for entry in skipped] == [("read", "its weight is read by sum too")]


def test_what_is_skipped_says_why():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 2, 2)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
            self.both = nn.Linear(3, 3)
            self.inside, self.position = nn.Linear(3, 3), nn.Parameter(torch.randn(1, 64, 3))

        def forward(self, x):
            y = self.normed(self.up(x)).flatten(2).transpose(1, 2) + self.inside(self.position)
            return self.both(self.both(y).mean(1))

    units, skipped = units_of(Mixed(), 2, 4, 4)
    assert not units
    assert {path: entry.operator for path, entry in skipped.items()} == {
        "up": "conv_transpose2d",
        "normed": "conv2d",
        "both": "linear",
        "inside": "linear",
        "position": "linear",
    }
    assert "transposed" in skipped["up"].reason
    assert "computed inside" in skipped["normed"].reason
    assert "different operators" in skipped["both"].reason
    assert "sees no input" in skipped["inside"].reason
    assert "no layer multiplies by it" in skipped["position"].reason


@pytest.mark.parametrize(
    "kinds",
    [
        lambda x: torch.zeros(x.shape[0], 3, dtype=torch.int64),
        torch.ones_like,
        lambda x: torch.ones(x.shape, dtype=torch.int64).cumsum(1),
        lambda x: x.new_zeros(x.shape),
    ],
    ids=["its batch", "like it", "counted", "new"],
)
def test_rows_that_are_looked_up_by_sizes_are_constants(kinds):
    class Kinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.kinds, self.head = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.words(x) + self.kinds(kinds(x)))

    traced = TracedModel(Kinds().eval(), (torch.randint(9, (2, 3)),))
    units, skipped = find_units(traced)
    assert [unit.path for unit in units] == ["words", "head"]
    assert [(each.path, "sees no input" in each.reason) for each in skipped] == [("kinds", True)]


def test_a_bias_that_is_computed_is_none_of_the_layer():
    class Biases(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            bias = torch.cat([self.first.bias, self.second.bias])[2:6]
            return F.linear(F.linear(x, self.first.weight, self.first.bias), self.second.weight, bias)

    units, _ = units_of(Biases(), 4)
    assert units["first"].bias is not None
    assert units["second"].bias is None


class Score(nn.Module):
    """One number for each row, by a weight that is a vector."""

    def __init__(self):
        super().__init__()
        self.weight, self.layer = nn.Parameter(torch.randn(6)), nn.Linear(6, 6)

    def forward(self, x):
        return F.linear(self.layer(x), self.weight)


def test_a_weight_that_is_a_vector_stays_float():
    units, skipped = units_of(Score(), 6)
    assert list(units) == ["layer"]
    assert "vector" in skipped["weight"].reason
