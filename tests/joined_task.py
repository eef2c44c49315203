"""The tiny task with a sum that a layer reads and a float operator too, so that keeping the sum in float changes the
value.
"""

import torch
from torch import Tensor, nn

from tests.tiny_task import Tiny, images


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(1, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x) + self.second(x))
        return self.head((torch.sigmoid(5 * x) * self.third(x)).mean((2, 3)))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Joined().eval()


class JoinedTask(Tiny):
    name = "joined"

    def model(self) -> nn.Module:
        return network()

    def calibration(self) -> object:
        return [(inputs, torch.zeros(len(inputs), dtype=torch.int64)) for inputs in images(1)]


task = JoinedTask
