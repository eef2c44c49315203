"""Widths that a graph network chooses."""

from __future__ import annotations

import pytest
import torch

from calib.formats.mixed_widths import bits_of_blocks
from calib.rounding.base import Moments
from calib.rounding.widths import graph
from calib.rounding.widths.base import errors_of_width, weights_of_errors
from calib.rounding.widths.graph import widths_by_graph

OUT, LENGTH, BLOCK = 8, 32, 8


def weight() -> torch.Tensor:
    return torch.randn(OUT, LENGTH, generator=torch.Generator().manual_seed(0))


def moments() -> Moments:
    """Inputs of which the last block is loud."""
    x = torch.randn(200, LENGTH, generator=torch.Generator().manual_seed(1))
    x[:, -BLOCK:] *= 4
    return Moments((x.T @ x / 200)[None])


def errors(choices: list[int]) -> torch.Tensor:
    importance = weights_of_errors(weight(), moments())
    return torch.stack([errors_of_width(weight(), importance, width, BLOCK) for width in choices])


def output_error(widths: tuple[int, ...]) -> float:
    choices = sorted(set(widths) | {2})
    layer = graph._Layer(errors(choices), moments().matrix[0], choices, 2.0, BLOCK)
    return float(layer.output_error(layer.one_hot(widths)))


def test_the_block_that_is_loud_gets_the_bits():
    widths = widths_by_graph(weight(), moments(), 2.0, BLOCK)
    assert sum(widths) == 8
    assert widths[-1] == max(widths) > 2
    assert output_error(widths) < 0.7 * output_error((2, 2, 2, 2))


@pytest.fixture
def briefly(monkeypatch):
    """However well it has learned."""
    monkeypatch.setattr(graph, "_STEPS", 20)


@pytest.mark.usefixtures("briefly")
def test_the_same_again_and_no_random_number_of_anybody_else():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert widths_by_graph(weight(), moments(), 2.5, BLOCK) == widths_by_graph(weight(), moments(), 2.5, BLOCK)
    assert torch.equal(before, torch.get_rng_state())


def test_the_error_of_the_output_is_that_of_all_columns_together():
    rounded = errors([1, 2])
    layer = graph._Layer(rounded, moments().matrix[0], [1, 2], 1.5, BLOCK)
    chosen = layer.one_hot((1, 2, 2, 1))
    left = torch.cat(
        [rounded[width - 1][:, i * BLOCK : (i + 1) * BLOCK] for i, width in enumerate((1, 2, 2, 1))], dim=1
    )
    wanted = torch.trace(left @ moments().matrix[0] @ left.T)
    assert torch.allclose(layer.output_error(chosen)[0], wanted, rtol=1e-4)


@pytest.mark.usefixtures("briefly")
def test_odd_layers_have_widths_too():
    """Nothing to learn from: no weight, no input, columns that are alike."""
    for odd, second in (
        (torch.zeros(OUT, LENGTH), torch.eye(LENGTH)),
        (weight(), torch.zeros(LENGTH, LENGTH)),
        (torch.ones(OUT, LENGTH), torch.ones(LENGTH, LENGTH)),
        (1e20 * weight(), torch.eye(LENGTH)),
        (1e-20 * weight(), 1e-20 * torch.eye(LENGTH)),
    ):
        for average in (1.25, 6.0):
            widths = widths_by_graph(odd, Moments(second[None]), average, BLOCK)
            assert sum(widths) == bits_of_blocks(average, LENGTH // BLOCK)
