"""Generated networks: a recipe is plain data, drawn from a seed; parts can be taken out of it and the rest is still a
network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from calib.sizes import resized
from tests.promise.drawing import Draw, Shape, names_for, shape_after
from tests.promise.endings import ODD_NAMES, ODD_OUTPUTS, ORDINARY_OUTPUTS, Sampler, beginning, second_input
from tests.promise.layers import LAYERS
from tests.promise.oddities import ODDITIES
from tests.promise.operators import OPERATORS

_PARTS = {**LAYERS, **OPERATORS}
_COMMON = (
    *["conv2d", "conv1d", "conv_bn_act", "pool2d", "relu", "residual", "branches"] * 3,
    "linear_bn",
    "move",
    "image_moves",
)
_ODD_SHARE = 0.4
_SEVERAL_SIZES = 0.1
"""Share of networks whose first input has several sizes. Many do not take them, and are refused."""


@dataclass(frozen=True)
class Recipe:
    """What a network is made of: name and seed of its parts, in order; a part that does not suit the shape in front of
    it is left out.

    `odd` are the adversarial features among them: names of parts, of an output, or `names`.
    """

    seed: int
    parts: tuple[tuple[str, int], ...]
    head: bool
    output: str
    second: bool
    layer_name: str | None
    several_sizes: bool = False

    @property
    def odd(self) -> tuple[str, ...]:
        names = [name for name, _ in self.parts if name in ODDITIES]
        names += [f"output: {self.output}"] if self.output in ODD_OUTPUTS else []
        return (*names, *(["names"] if self.layer_name is not None else []))

    def smaller(self) -> list[Recipe]:
        """Recipes with one thing less, the most different first."""
        fewer = [replace(self, parts=self.parts[:index] + self.parts[index + 1 :]) for index in range(len(self.parts))]
        if self.second:
            fewer.append(replace(self, second=False))
        if self.output != "plain":
            fewer.append(replace(self, output="plain"))
        if self.layer_name is not None:
            fewer.append(replace(self, layer_name=None))
        if self.several_sizes:
            fewer.append(replace(self, several_sizes=False))
        return fewer


def recipe_from_seed(seed: int) -> Recipe:
    """Draw a recipe; two in five have an adversarial feature."""
    draw = Draw(seed)
    parts = [(draw(*_PARTS, *_COMMON), draw.seed()) for _ in range(draw(1, 2, 3, 4, 5))]
    output, name = draw(*["plain"] * 7, *ORDINARY_OUTPUTS), None
    if draw.chance(_ODD_SHARE):
        what = draw(*["part"] * 7, "output", "output", "name")
        if what == "part":
            parts.insert(draw(*range(len(parts) + 1)), (draw(*ODDITIES), draw.seed()))
        elif what == "output":
            output = draw(*ODD_OUTPUTS)
        else:
            name = draw(*ODD_NAMES)
    head, second, several_sizes = draw.chance(0.8), draw.chance(0.15), draw.chance(_SEVERAL_SIZES)
    return Recipe(seed, tuple(parts), head, output, second, name, several_sizes)


class Network(nn.Module):
    """A beginning, parts in a row, a head; the second input scales the result."""

    def __init__(
        self, begin: nn.Module, parts: Sequence[tuple[str, nn.Module]], second: nn.Module | None, output: str
    ) -> None:
        super().__init__()
        self.begin = begin
        self.parts = nn.Sequential()
        for name, part in parts:
            self.parts.add_module(name, part)
        self.second = second
        self.output = output

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        z = self.parts(self.begin(x))
        if self.second is not None and y is not None:
            z = z * self.second(y).reshape(-1, *[1] * (z.dim() - 1))
        return {**ORDINARY_OUTPUTS, **ODD_OUTPUTS}[self.output](x, z)


@dataclass(frozen=True)
class Generated:
    """A network in evaluation mode, its inputs, and which parts it really has."""

    recipe: Recipe
    module: nn.Module
    samplers: tuple[Sampler, ...]
    parts: tuple[str, ...]

    def inputs(self, count: int, seed: int, longer: float = 0) -> tuple[Tensor, ...]:
        """Samples; where inputs have several sizes, the last axis of the first one is longer by this share."""
        generator = torch.Generator().manual_seed(seed)
        first, *others = (sample(count, generator) for sample in self.samplers)
        shape = tuple(first.shape[1:])
        if self.recipe.several_sizes and len(shape) > 1:
            first = resized(first, (*shape[:-1], int(shape[-1] * (1 + longer))))
        return (first, *others)


def generated(recipe: Recipe) -> Generated:
    """Build the network of a recipe; the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _generated(recipe)


def _generated(recipe: Recipe) -> Generated:
    draw = Draw(recipe.seed + 1)
    sampler, begin, shape = beginning(draw)
    second = second_input(Draw(recipe.seed + 2)) if recipe.second else None
    parts: list[tuple[str, nn.Module]] = []
    for name, seed in recipe.parts:
        made = _made(name, Draw(seed), shape)
        if made is not None:
            parts.append((f"{name}_{len(parts)}", made[0]))
            shape = made[1]
    if recipe.head or not any(
        isinstance(each, (nn.Linear, nn.Conv1d, nn.Conv2d)) for _, part in parts for each in part.modules()
    ):
        parts.append(("head", _head(Draw(recipe.seed + 3), shape)))
    if recipe.layer_name is not None:
        parts = _renamed(parts, recipe.layer_name)
    module = Network(begin, parts, second[1] if second else None, recipe.output)
    training = [part for part in module.modules() if part.training]
    module.eval()
    if any(name == "left_in_training" for name, _ in recipe.parts):
        for part in training:
            part.training = not isinstance(part, Network)
    samplers = (sampler, *([second[0]] if second else []))
    return Generated(recipe, module, samplers, tuple(name for name, _ in parts))


def _made(name: str, draw: Draw, shape: Shape) -> tuple[nn.Module, Shape] | None:
    """A part and the shape behind it; None when it does not suit the shape in front of it."""
    if name in ODDITIES:  # these keep the shape, and must not be called before the tool does
        return ODDITIES[name][1](draw, shape), shape
    if name not in names_for(_PARTS, shape):
        return None
    try:
        module = _PARTS[name][1](draw, shape)
        return module, shape_after(copy.deepcopy(module).eval(), shape)
    except ValueError:
        return None


def _head(draw: Draw, shape: Shape) -> nn.Module:
    classes = draw(1, 3, 5, 10)
    if len(shape) == 1 or (len(shape) == 2 and draw.chance(0.3)):
        return nn.Linear(shape[-1], classes)
    if draw.chance(0.5):
        return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes))
    pool = nn.AdaptiveAvgPool2d(1) if len(shape) == 3 else nn.AdaptiveAvgPool1d(1)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(shape[0], classes))


def _renamed(parts: list[tuple[str, nn.Module]], name: str) -> list[tuple[str, nn.Module]]:
    """Give the last part an odd name, unless PyTorch itself refuses it."""
    if not parts or name == "" or "." in name or hasattr(nn.Sequential(), name):
        return parts
    return [*parts[:-1], (name, parts[-1][1])]
