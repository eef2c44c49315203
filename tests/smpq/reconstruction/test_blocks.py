"""Blocks are found from the graph, whatever the modules are called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.network.graph import TracedModel
from calib.network.units import find_units
from smpq.reconstruction.blocks import find_blocks
from tests.smpq.problems import residual


class Transformer(nn.Module):
    """Two blocks of attention and two linear layers, with the sizes of the input computed on the way."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(8, width) for name, width in (("qkv", 24), ("out", 8), ("up", 16))})
            for _ in range(2)
        )
        self.downs = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for part, down in zip(self.parts, self.downs, strict=True):
            q, k, v = part["qkv"](x).view(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v)
            x = x + part["out"](mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], 8))
            x = x + down(F.gelu(part["up"](x)))
        return self.head(x.mean(1))


class LongSkips(nn.Module):
    """A U of fourteen layers: the first tensor is alive up to the end."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(14))

    def forward(self, x):
        first = F.relu(self.layers[0](x))
        second = x = F.relu(self.layers[1](first))
        for layer in self.layers[2:12]:
            x = F.relu(layer(x))
        return self.layers[13](F.relu(self.layers[12](x + second)) + first)


class Pyramid(nn.Module):
    """Residual blocks of two layers in two stages, of which the end reads both: the first stays alive meanwhile."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)) for _ in range(8)
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for number, block in enumerate(self.blocks):
            x = F.relu(x + block(x))
            if number == 1:
                first = x
        return self.head(torch.cat([first, x], 1))


def layers_of(model, example):
    traced = TracedModel(model.eval(), (example,))
    units, _ = find_units(traced)
    blocks = find_blocks(traced, units)
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == len(traced.steps)
    assert sorted(unit.path for block in blocks for unit in block.units) == sorted(unit.path for unit in units)
    return [[unit.path for unit in block.units] for block in blocks], blocks


def test_a_residual_block_is_one():
    given = residual()
    blocks = find_blocks(given.traced, given.units)
    inside = [{unit.path for unit in block.units} for block in blocks]
    assert any(len(paths) > 1 for paths in inside), "the layers of a branch are not on their own"
    assert all(len(block.outputs) == 1 for block in blocks)


def test_attention_and_the_layers_behind_it_are_blocks():
    found, _ = layers_of(Transformer(), torch.randn(2, 5, 8))
    assert found == [
        ["parts.0.qkv", "parts.0.out"],
        ["parts.0.up", "downs.0"],
        ["parts.1.qkv", "parts.1.out"],
        ["parts.1.up", "downs.1"],
        ["head"],
    ]


def test_a_chain_is_cut_at_each_layer():
    chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    found, blocks = layers_of(chain, torch.randn(2, 4))
    assert found == [["0"], ["2"], ["4"]]
    assert [block.outputs for block in blocks[:2]] == [("relu",), ("relu_1",)]


def test_long_skips_do_not_make_one_block_of_a_network():
    found, blocks = layers_of(LongSkips(), torch.randn(2, 4, 6, 6))
    assert len(found) == 14
    assert all(len(block.outputs) == 1 for block in blocks)


def test_residual_blocks_stay_whole_beside_a_long_skip():
    found, blocks = layers_of(Pyramid(), torch.randn(2, 3, 6, 6))
    pairs = [[f"blocks.{number}.0", f"blocks.{number}.2"] for number in range(8)]
    # in the third block nothing is alive but what the skip carries: its two layers are cut, as a chain is
    assert found == [["stem"], *pairs[:2], ["blocks.2.0"], ["blocks.2.2"], *pairs[3:], ["head"]]
    assert all(len(block.outputs) == 1 for block in blocks)


@pytest.mark.parametrize("count", [1, 3])
def test_a_network_for_one_batch_size(count):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.two(F.relu(self.one(x)).reshape(count, 4))

    traced = TracedModel(Fixed().eval(), (torch.randn(count, 4),), free=False)
    units, _ = find_units(traced)
    assert [[unit.path for unit in block.units] for block in find_blocks(traced, units)] == [["one"], ["two"]]


class Patches(nn.Module):
    """Patches of an image as tokens `[n, 9, 8]`, and layers on them."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x).transpose(1, 2)


class Inverted(nn.Module):
    """Linear layers on the channels of an image, which are moved behind the positions and back (ConvNeXt)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(x + self.layers(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("model", "shape", "channels"),
    [
        (Patches(), (2, 3, 6, 6), [8, 8, 5]),
        (Inverted(), (2, 3, 8, 8), [8, 8, 4]),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), (2, 3, 12), [8, 4]),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (2, 5, 6), [8, 4]),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4)), (2, 3, 4, 4), [32, 4]),
    ],
)
def test_channels_are_those_of_the_layers(model, shape, channels):
    _, blocks = layers_of(model, torch.rand(shape))
    traced = TracedModel(model.eval(), (torch.rand(shape),))
    found = [traced.nodes[block.outputs[0]].meta["val"].shape for block in blocks[:-1]]
    found.append(model(torch.rand(shape)).shape)
    axes = [block.channel_axis(size) for block, size in zip(blocks, found, strict=True)]
    assert [size[axis] for size, axis in zip(found, axes, strict=True)] == channels
