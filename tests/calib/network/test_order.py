"""The order of images in memory in which a network is fastest, and whether it bears it."""

import pytest
import torch
from torch import nn

from calib.errors import UserError
from calib.network.graph import TracedModel
from calib.network.order import fastest_order, order_borne_by
from tests.smpq.problems import Residual


class Viewed(nn.Module):
    """Views an image, which the trace writes as a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) + x.view(x.shape[0], -1)[:, :4]


class Strided(Viewed):
    """Looks at the memory: runs in another order, and computes something else in it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).as_strided((2, 4), (4 * 64, 1))


@pytest.mark.parametrize(
    ("model", "order"),
    [
        (Residual(), torch.channels_last),
        (Viewed(), torch.channels_last),
        (Strided(), torch.contiguous_format),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), torch.contiguous_format),
    ],
    ids=["convolutions", "views", "strides", "none"],
)
def test_channels_last_where_the_network_bears_it(model, order):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    traced = TracedModel(model.eval(), (x,), free=not isinstance(model, Strided))
    found = fastest_order(traced, (x,))
    assert found == order
    assert torch.allclose(traced.run((x,), order=found), model(x), atol=1e-5)


class Refuses(Viewed):
    """Fails on another order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_contiguous():
            raise UserError("another order")
        return super().forward(x)


class Several(Residual):
    """Gives numbers, truths and a constant."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        y = super().forward(x)
        return y, y > 0, 3


class OfAnyLayout(Viewed):
    """Gives an answer of another shape on another order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))[:, : 4 if x.is_contiguous() else 3]


@pytest.mark.parametrize(
    ("model", "order"),
    [
        (Residual(), torch.channels_last),
        (Several(), torch.channels_last),
        (OfAnyLayout(), torch.contiguous_format),
        (Viewed(), torch.contiguous_format),
        (Strided(), torch.contiguous_format),
        (Refuses(), torch.contiguous_format),
    ],
    ids=["convolutions", "several", "shapes", "views", "strides", "refuses"],
)
def test_a_module_shows_that_it_bears_channels_last(model, order):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert order_borne_by(lambda inputs: model.eval()(*inputs), [x]) == order
