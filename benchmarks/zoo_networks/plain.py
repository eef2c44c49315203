"""Plain PyTorch networks of kinds that `transformers` does not have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo_networks.network import Network, floats, images, tokens


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two levels, transposed convolutions upwards."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = _block(3, 16), _block(16, 32), _block(32, 48)
        self.up2, self.up1 = nn.ConvTranspose2d(48, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge2, self.merge1 = _block(64, 32), _block(32, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        deep = self.middle(functional.max_pool2d(two, 2))
        two = self.merge2(torch.cat([two, self.up2(deep)], 1))
        return self.head(self.merge1(torch.cat([one, self.up1(two)], 1)))


class Tagger(nn.Module):
    """A label for each word by a bidirectional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 8)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(words))[0])


class Recommender(nn.Module):
    """Shaped as DLRM: dense features and categories meet in products of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(64, 16) for _ in range(4))
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(16 + 10, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
        self.register_buffer("pairs", torch.tril_indices(5, 5, -1), persistent=False)

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        low = self.bottom(dense)
        vectors = torch.stack([low, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        products = vectors @ vectors.transpose(1, 2)
        return self.top(torch.cat([low, products[:, self.pairs[0], self.pairs[1]]], 1))


class Graph(nn.Module):
    """Two rounds of messages along edges that are inputs, summed by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, 32), nn.Linear(32, 5)
        self.messages = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))
        self.updates = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))

    def forward(self, nodes: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        state = self.enter(nodes).relu()
        sources, targets = (ends[:, :, None].expand(-1, -1, 32) for ends in (sources, targets))
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = message(torch.cat([state.gather(1, sources), state.gather(1, targets)], 2)).relu()
            received = torch.zeros_like(state).scatter_add(1, targets, sent)
            state = state + update(torch.cat([state, received], 2)).relu()
        return self.head(state.mean(1))


class TwoInputs(nn.Module):
    """An image and a vector, answered by a dictionary with a nested list."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(_block(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.vector, self.mixed = nn.Linear(10, 16), nn.Linear(32, 24)
        self.classes, self.boxes = nn.Linear(24, 6), nn.Linear(24, 4)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, object]:
        mixed = self.mixed(torch.cat([self.image(image), self.vector(vector).relu()], 1)).relu()
        return {"classes": self.classes(mixed), "more": [self.boxes(mixed).sigmoid(), {"features": mixed}]}


class Shared(nn.Module):
    """One block for three scales, one projection used as it is and transposed, a head tied to nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block, self.head = nn.Conv2d(3, 16, 1), _block(16, 16), nn.Linear(32, 10)
        self.projection = nn.Parameter(torch.randn(16, 32) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        scales = [self.block(x), self.block(functional.avg_pool2d(x, 2)), self.block(functional.avg_pool2d(x, 4))]
        pooled = sum(scale.mean((2, 3)) for scale in scales)
        return self.head((pooled @ self.projection).relu())


class Products(nn.Module):
    """Linear layers in every spelling: addmm, mm, matmul and einsum with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(24, 32) / 5), nn.Parameter(torch.randn(32) / 10)
        self.second, self.third = nn.Parameter(torch.randn(32, 32) / 6), nn.Parameter(torch.randn(32, 4, 8) / 6)
        self.fourth = nn.Parameter(torch.randn(10, 32) / 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.bias, x, self.first).relu()
        x = torch.mm(x, self.second).relu()
        heads = torch.einsum("nk,khd->nhd", x, self.third).relu()
        return torch.matmul(heads.flatten(1), self.fourth.T)


class Residual1d(nn.Module):
    """Dilated convolutions over a signal, as in WaveNet or a TCN."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, 24, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv1d(24, 48, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.outs = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in range(3))
        self.head = nn.Conv1d(24, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer, out in zip(self.layers, self.outs, strict=True):
            value, gate = layer(x).chunk(2, 1)
            x = x + out(value.tanh() * gate.sigmoid())
        return self.head(x)


class Autoencoder(nn.Module):
    """MLPerf Tiny's chain of linear layers, narrower."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 32, 32, 8, 32, 32, 64]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.chain = nn.Sequential(*layers[:-2])

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x)


def _click(count: int) -> tuple[Tensor, ...]:
    return torch.randn(count, 13), torch.randint(0, 64, (count, 4))


def _graph(count: int) -> tuple[Tensor, ...]:
    return torch.randn(count, 12, 8), torch.randint(0, 12, (count, 30)), torch.randint(0, 12, (count, 30))


def networks() -> Iterator[Network]:
    yield Network("unet", "plain", UNet, images(32))
    yield Network("lstm-tagger", "plain", Tagger, tokens(12))
    yield Network("dlrm", "plain", Recommender, _click)
    yield Network("gnn", "plain", Graph, _graph)
    yield Network("two-inputs-dict", "plain", TwoInputs, lambda n: (*images(32)(n), torch.randn(n, 10)))
    yield Network("shared-modules", "plain", Shared, images(32))
    yield Network("products", "plain", Products, floats(24))
    yield Network("tcn", "plain", Residual1d, floats(2, 64))
    yield Network("autoencoder", "plain", Autoencoder, floats(64))
