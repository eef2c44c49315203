import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.network.execution import Edits
from calib.network.graph import TracedModel
from calib.network.nodes import module_path, operator_name


class InPlace(nn.Module):
    """A residual sum written in place, and one layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 1)
        self.register_buffer("offset", torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.again(F.relu(self.again(x)))
        y += x
        return F.relu_(y) + self.offset


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": left + right, "left": left}


class FixedBatch(nn.Module):
    """Unrolls over its batch, so that the traced graph holds for one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(row) for row in x])


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def pickled(made):
    return pickle.loads(pickle.dumps(made))  # noqa: TID251 - our own bytes


@pytest.fixture
def traced():
    torch.manual_seed(0)
    return TracedModel(InPlace().eval(), (torch.randn(2, 2, 5, 5),))


def test_the_graph_computes_what_the_model_computes(traced):
    for batch in (1, 2, 7):
        x = torch.randn(batch, 2, 5, 5)
        assert torch.equal(traced.run((x,)), traced.module(x))
    assert traced.dynamic_batch


def test_nothing_is_done_in_place_and_the_inputs_are_left_alone(traced):
    assert all(not operator_name(node).endswith("_") for node in traced.graph.nodes)
    x = torch.randn(2, 2, 5, 5)
    before = x.clone()
    seen: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}

    def observe(name, tensor):
        seen[name] = tensor
        copies[name] = tensor.clone()

    traced.run((x,), observe=observe)
    assert torch.equal(x, before)
    assert all(torch.equal(seen[name], copies[name]) for name in seen)


def test_observe_sees_inputs_and_every_tensor_once(traced):
    names: list[str] = []
    traced.run((torch.randn(2, 2, 5, 5),), observe=lambda name, tensor: names.append(name))
    assert names == ["x", *(node.name for node in traced.graph.nodes if node.op == "call_function")]


def test_a_module_that_runs_twice_has_two_nodes_and_one_path(traced):
    nodes = [node for node in traced.graph.nodes if operator_name(node) == "conv2d"]
    assert [module_path(node) for node in nodes] == ["first", "again", "again"]
    assert traced.producer(nodes[0].name) is nodes[0]
    assert {operator_name(user) for user in traced.consumers(nodes[0].name)} == {"conv2d", "add"}


def test_a_source_edit_reaches_every_consumer_and_an_edge_edit_only_one(traced):
    x = torch.randn(2, 2, 5, 5)
    first, again, _ = (node.name for node in traced.graph.nodes if operator_name(node) == "conv2d")
    model = traced.module

    def expected(to_conv: Tensor, to_add: Tensor) -> Tensor:
        return F.relu(model.again(F.relu(model.again(to_conv))) + to_add) + 0.5

    y = model.first(x)
    torch.testing.assert_close(traced.run((x,), Edits(sources={first: lambda t: t * 2})), expected(2 * y, 2 * y))
    torch.testing.assert_close(traced.run((x,), Edits(edges={(first, again): lambda t: t * 2})), expected(2 * y, y))
    torch.testing.assert_close(
        traced.run((x,), Edits(sources={"x": torch.zeros_like})), traced.run((torch.zeros_like(x),))
    )


def test_observe_sees_a_tensor_before_its_edit(traced):
    first = next(node.name for node in traced.graph.nodes if operator_name(node) == "conv2d")
    seen: dict[str, Tensor] = {}
    x = torch.randn(2, 2, 5, 5)
    traced.run((x,), Edits(sources={first: torch.zeros_like}), seen.__setitem__)
    assert torch.equal(seen[first], traced.module.first(x))


def test_a_parameter_edit_reaches_every_call_of_its_layer(traced):
    x = torch.randn(2, 2, 5, 5)
    name = next(node for node, parameter in traced.parameter_names.items() if parameter == "again.weight")
    edited = traced.run((x,), Edits(parameters={name: torch.zeros(4, 4, 1, 1)}))
    bias = traced.module.again.bias[None, :, None, None]
    torch.testing.assert_close(edited, F.relu(traced.module.first(x) + bias) + 0.5)


def test_consumers_with_the_same_edit_share_one_result():
    class Branches(nn.Module):
        def forward(self, x):
            y = x * 3
            return torch.sin(y), torch.cos(y)

    traced = TracedModel(Branches().eval(), (torch.randn(2, 3),))
    calls: list[str] = []

    def edit(tensor):
        calls.append("edit")
        return tensor + 1

    x = torch.randn(2, 3)
    sine, cosine = traced.run((x,), Edits(edges={("mul", "sin"): edit, ("mul", "cos"): edit}))
    assert calls == ["edit"]
    torch.testing.assert_close(sine, torch.sin(3 * x + 1))
    torch.testing.assert_close(cosine, torch.cos(3 * x + 1))


def test_several_inputs_and_the_structure_of_the_output():
    traced = TracedModel(TwoInputs().eval(), (torch.randn(2, 3), torch.randn(2, 3)))
    left, right = torch.randn(4, 3), torch.randn(4, 3)
    output = traced.run((left, right))
    assert set(output) == {"sum", "left"}
    assert torch.equal(output["sum"], left + right)
    assert torch.equal(output["left"], left)
    with pytest.raises(ValueError, match="zip"):
        traced.run((left,))


def test_a_model_of_one_batch_size_is_traced_at_that_size():
    model = FixedBatch().eval()
    example = torch.randn(2, 4)
    traced = TracedModel(model, (example,))
    assert not traced.dynamic_batch
    assert not vars(example), "the caller's tensors carry torch's marks"
    x = torch.randn(2, 4)
    torch.testing.assert_close(traced.run((x,)), model(x))


def test_parameters_in_the_same_memory_are_one_tensor():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    model[1].weight = nn.Parameter(model[0].weight.data)  # two parameters, one storage: torch does not merge these
    traced = TracedModel(model, (torch.randn(2, 3),))
    first, second = (node for node in traced.graph.nodes if operator_name(node) == "linear")
    assert first.args[1] is second.args[1]
    x = torch.randn(2, 3)
    assert torch.equal(traced.run((x,)), model(x))


def test_training_mode_and_untraceable_models_are_user_errors():
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        TracedModel(InPlace(), (torch.randn(2, 2, 5, 5),))
    with pytest.raises(UserError, match=r"torch\.export"):
        TracedModel(Untraceable().eval(), (torch.randn(2, 2),))


class Shared(nn.Module):
    """Two parameters in one storage, several outputs, and operators with keyword and constant arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.right.weight = nn.Parameter(self.left.weight.data)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        scores = F.softmax(self.right(self.left(x)), dim=-1, dtype=torch.float64)
        halves = torch.split(scores, 2, dim=1)
        return {"halves": list(halves), "mean": [scores.mean(1).to(torch.float32), x.new_zeros(x.shape[0])]}


class Builtins(nn.Module):
    """Arguments whose names Python has already, as the input of every `nn.Sequential`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, input: Tensor, input_1: Tensor, hash: Tensor) -> Tensor:  # noqa: A002
        return self.layer(input - 2 * input_1) + hash


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (Builtins, [(2, 4), (2, 4), (2, 3)]),
        (InPlace, [(2, 2, 5, 5)]),
        (TwoInputs, [(2, 3), (2, 3)]),
        (FixedBatch, [(2, 4)]),
        (Shared, [(2, 4)]),
    ],
)
def test_a_pickled_copy_is_the_same_graph_without_the_model(make, shapes):
    class Local(make):
        """Cannot be pickled, as a class of a script that another process does not import."""

    torch.manual_seed(0)
    traced = TracedModel(Local().eval(), tuple(torch.randn(shape) for shape in shapes))
    copy = pickled(traced)
    assert [(node.name, operator_name(node)) for node in copy.graph.nodes] == [
        (node.name, operator_name(node)) for node in traced.graph.nodes
    ]
    for name, node in traced.nodes.items():
        assert {user.name for user in copy.consumers(name)} == {user.name for user in node.users}
        assert [read.name for read in copy.nodes[name].all_input_nodes] == [read.name for read in node.all_input_nodes]
    assert (copy.inputs, copy.last_uses, copy.dynamic_batch) == (traced.inputs, traced.last_uses, traced.dynamic_batch)
    batch = tuple(torch.randn(shape) for shape in shapes)
    ours, theirs = (pytree.tree_flatten(each.run(batch)) for each in (copy, traced))
    assert ours[1] == theirs[1]
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    assert not hasattr(copy, "module")


def test_a_copy_of_a_copy_is_edited_like_the_original(traced):
    copy = pickled(pickled(traced))
    first, again, _ = (node.name for node in traced.graph.nodes if operator_name(node) == "conv2d")
    weight = next(node for node, parameter in traced.parameter_names.items() if parameter == "again.weight")
    edits = Edits(edges={(first, again): torch.tanh}, parameters={weight: torch.ones(4, 4, 1, 1)})
    x = torch.randn(3, 2, 5, 5)
    assert torch.equal(copy.run((x,), edits), traced.run((x,), edits))
    assert not torch.equal(copy.run((x,), edits), copy.run((x,)))


def test_a_copy_on_another_device_makes_its_constants_there():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) + torch.arange(3.0, device=x.device)

    traced = TracedModel(Offset().eval(), (torch.randn(2, 4),))
    assert any("device" in node.kwargs for node in traced.steps), "the graph says where the constant is made"
    buffer = io.BytesIO()
    torch.save(traced, buffer)
    elsewhere = torch.load(io.BytesIO(buffer.getvalue()), map_location="meta", weights_only=False)  # noqa: TID251 - own
    output = elsewhere.run((torch.randn(5, 4, device="meta"),))
    assert (output.device.type, output.shape) == ("meta", (5, 3))


def test_counting_elements_leaves_a_free_batch_free():
    class BatchInside(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], 4, 3, 2).permute(2, 0, 1, 3) + x.mean()

    traced = TracedModel(BatchInside().eval(), (torch.randn(2, 24),))
    values = {node.name: node.meta["val"] for node in traced.steps if isinstance(node.meta["val"], torch.Tensor)}
    assert {name: traced.elements_of_one(value) for name, value in values.items()} == {
        "view": 24,
        "permute": 24,
        "mean": 1,
        "add": 24,
    }
    assert values["permute"].shape[1].node.expr.free_symbols


def test_elements_of_a_fixed_batch():
    traced = TracedModel(nn.Identity().eval(), (torch.randn(5, 3, 2),), free=False)
    assert traced.elements_of_one(traced.nodes["x"].meta["val"] if "x" in traced.nodes else torch.zeros(5, 3, 2)) == 6


@pytest.mark.parametrize("name", ["class", "None"])
def test_a_layer_named_by_a_word_of_python_is_refused(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(3, 3))
    with pytest.raises(UserError, match="rename it"):
        TracedModel(model.eval(), (torch.randn(2, 3),))
