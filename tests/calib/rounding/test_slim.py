"""SliM-LLM's widths and ranges, against what their definitions give when everything is tried."""

from __future__ import annotations

import pytest
import torch

from calib.formats.format import Format
from calib.formats.zero_points import zero_point
from calib.rounding import ROUNDINGS, Moments, slim
from calib.rounding.widths import WIDTH_RULES
from calib.rounding.widths.base import salience
from tests.calib.rounding.test_rounding import LENGTH, OUT, correlated, weight_of

BLOCK = 4


def test_salience_is_what_setting_a_weight_to_zero_costs_when_the_columns_behind_it_absorb_it():
    moments, weight = correlated(), weight_of()
    matrix = moments.matrix[0].double()
    matrix = matrix + 0.01 * torch.diagonal(matrix).mean() * torch.eye(LENGTH, dtype=torch.float64)
    for column in (0, 7, LENGTH - 1):
        # the columns behind are chosen so that the error of the output is least: a Schur complement
        own, behind = matrix[column, column], slice(column + 1, LENGTH)
        cross = matrix[column, behind]
        left = own - cross @ torch.linalg.solve(matrix[behind, behind], cross) if column + 1 < LENGTH else own
        expected = weight[:, column].double().square() * left
        found = salience(weight, moments)[:, column].double()
        torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-3, atol=0)
        torch.testing.assert_close(
            found / salience(weight, moments)[:, -1],
            expected / (weight[:, -1].square() * matrix[-1, -1]),
            rtol=1e-2,
            atol=0,
        )


def blocks_of_range(weight: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """Every block rounded to the nearest on the range of its weights, one row after the other."""
    result = weight.clone()
    for row in range(len(weight)):
        for number, bits in enumerate(widths):
            part = weight[row, number * BLOCK : (number + 1) * BLOCK]
            if bits == 1:
                mean = part.abs().mean().bfloat16() * 0 + part.abs().mean()
                result[row, number * BLOCK : (number + 1) * BLOCK] = torch.where(part >= 0, mean, -mean)
                continue
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            step = (high - low) / (2**bits - 1)
            zero = round(-low / step)
            values = torch.clamp(torch.round(part / step + zero), 0, 2**bits - 1)
            result[row, number * BLOCK : (number + 1) * BLOCK] = (values - zero) * step
    return result


@pytest.mark.parametrize("average", [2.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_widths_are_the_best_of_all_exchanges_between_the_ends(average, seed):
    weight, moments = weight_of(seed) * torch.logspace(0.6, -0.6, LENGTH), correlated(seed=seed)
    order = salience(weight, moments).reshape(OUT, -1, BLOCK).sum((0, 2)).argsort().tolist()
    best, least = None, None
    for moved in range(LENGTH // BLOCK // 2 + 1):
        widths = [int(average)] * (LENGTH // BLOCK)
        for number in order[:moved]:
            widths[number] -= 1
        for number in order[len(order) - moved :]:
            widths[number] += 1
        difference = blocks_of_range(weight, tuple(widths)) - weight
        error = float(((difference @ moments.matrix[0]) * difference).sum())
        if least is None or error < least:
            best, least = tuple(widths), error
    assert WIDTH_RULES["slim"](weight, moments, average, BLOCK) == best
    assert len(set(best)) > 1


def test_a_fraction_goes_to_the_most_salient_blocks():
    weight = weight_of() * torch.logspace(0.01, -0.01, LENGTH)
    moments = Moments(torch.diag(torch.logspace(-1, 1, LENGTH))[None])
    widths = WIDTH_RULES["slim"](weight, moments, 2.25, BLOCK)
    assert sum(widths) == 18
    assert list(widths) == sorted(widths)


def test_ranges_are_the_best_within_a_tenth_of_that_of_the_weights():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 32, generator=generator)
    weight[:, 3] *= 4
    step, zero = slim._near_the_range(weight, zero_point(2), torch.zeros(6))
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    torch.testing.assert_close(zero, torch.round(-low / (high - low) * 3))

    def cost(scale: torch.Tensor) -> torch.Tensor:
        values = torch.clamp(torch.round(weight / scale[:, None] + zero[:, None]), 0, 3) - zero[:, None]
        return ((values * scale[:, None] - weight).abs() ** 2.4).sum(1)

    every = torch.stack(
        [cost(((high - low) / 3 * share).bfloat16().float()) for share in torch.linspace(0.9, 1.1, 101)]
    )
    torch.testing.assert_close(cost(step), every.min(0).values, rtol=1e-3, atol=0)


@pytest.mark.parametrize("text", ["wz2b8", "wz4b8"])
def test_the_error_of_the_output_is_less_than_of_nearest_rounding_on_the_same_grid(text):
    weight, moments, chosen = weight_of(), correlated(), Format.from_text(text)
    found = ROUNDINGS["slim"](weight, moments, chosen.weight, 8, torch.zeros(OUT))
    steps, zeros = (each.repeat_interleave(8, 1) for each in (found.scale, found.zero_point))
    low, high = chosen.weight.limits
    nearest = (torch.clamp(torch.round(weight / steps + zeros), low, high) - zeros) * steps
    errors = [
        float((((made - weight) @ moments.matrix[0]) * (made - weight)).sum()) for made in (found.dequantize(), nearest)
    ]
    assert errors[0] < 0.7 * errors[1]
