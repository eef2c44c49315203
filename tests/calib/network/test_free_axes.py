"""Traces whose inputs have other free axes than the batch."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import UserError
from calib.network.faithful import check_faithful
from calib.network.graph import TracedModel
from calib.sizes import shapes_of_one, sizes_of
from calib.task import Batch


class AnySize(nn.Module):
    """Takes images of any size, and adds a table that grows with them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.table = nn.Parameter(torch.randn(1, 4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return F.relu(x + self.table[:, :, : x.shape[2], : x.shape[3]]).mean((2, 3))


def of_sizes(*shapes):
    return sizes_of([(shape,) for shape in shapes], ["x"])


def test_axes_besides_the_batch_stay_free():
    model, sizes = AnySize().eval(), of_sizes((3, 8, 12), (3, 16, 8))
    traced = TracedModel(model, (torch.randn(2, 3, 16, 8),), (1, 2), inputs=sizes)
    assert traced.dynamic_batch
    assert pickle.loads(pickle.dumps(traced)).sizes == sizes  # noqa: TID251 - our own bytes
    for shape in ((1, 3, 8, 12), (5, 3, 9, 9)):
        x = torch.randn(shape)
        assert torch.allclose(traced.run([x]), model(x), atol=1e-6)
    found = [node.meta["val"] for node in traced.steps]
    values = [traced.elements_of_one(value) for value in found if isinstance(value, Tensor)]
    assert values[0] == 4 * 8 * 4, "the convolution's, where the input has its usual size"
    assert 8 * 4 * 4 in values, "those of the table, which counts no samples"
    assert values[-1] == 4


def test_axes_stay_free_where_the_batch_is_fixed():
    class OneBatch(AnySize):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).reshape(2, 4)

    traced = TracedModel(OneBatch().eval(), (torch.randn(2, 3, 16, 8),), (2,), inputs=of_sizes((3, 8, 12), (3, 16, 8)))
    assert not traced.dynamic_batch
    assert traced.run([torch.randn(2, 3, 10, 10)]).shape == (2, 4)
    assert traced.elements_of_one(traced.nodes["conv2d"].meta["val"]) == 4 * 8 * 4


@pytest.mark.parametrize("height", [12, 16])
def test_a_model_that_does_something_else_for_one_size_is_refused(height):
    class OneSize(AnySize):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[2] == height else super().forward(-x)

    model, given = OneSize().eval(), [Batch((torch.randn(2, 3, height, 8),), None) for height in (12, 16)]
    traced = TracedModel(model, given[1].inputs, (1, 2), inputs=of_sizes((3, 12, 8), (3, 16, 8)))
    with pytest.raises(UserError, match=r"does not compute what the model does on .*must not depend on .* their size"):
        check_faithful(model, traced, given)


def test_an_operator_that_torch_cannot_write_is_refused_for_what_it_is():
    class Drawing(AnySize):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.empty_like(x).random_(0, 4))

    with pytest.raises(UserError, match="the model draws random numbers"):
        TracedModel(Drawing().eval(), (torch.randn(2, 3, 16, 8),), (1, 2), inputs=of_sizes((3, 8, 12), (3, 16, 8)))


def test_a_model_that_cannot_have_several_sizes_says_why():
    class Rows(AnySize):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.ones(16, 1))

    with pytest.raises(
        UserError, match=r"cannot be traced for inputs of several sizes \(3x8x8 to 3x16x12\): .+ Let calib"
    ):
        TracedModel(Rows().eval(), (torch.randn(2, 3, 16, 8),), (1, 2), inputs=of_sizes((3, 8, 12), (3, 16, 8)))


def test_no_sample_has_both_axes_free():
    class Pairs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, y], 1).sum(1)

    given = [Batch((torch.randn(2, first, 3), torch.randn(2, second, 3)), None) for first, second in ((1, 16), (16, 1))]
    sizes = sizes_of([shapes_of_one([tensor.shape for tensor in batch.inputs]) for batch in given], ["x", "y"])
    traced = TracedModel(Pairs().eval(), given[0].inputs, (1, 2), inputs=sizes)
    x, y = torch.randn(2, 5, 3), torch.randn(2, 9, 3)
    assert torch.allclose(traced.run((x, y)), torch.cat([x, y], 1).sum(1))
    check_faithful(Pairs().eval(), traced, given)
