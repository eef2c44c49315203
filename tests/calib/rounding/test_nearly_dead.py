"""Layers that GPTQ has nothing to go by for: none ends a calibration, and none is rounded worse than to nearest."""

import pytest
import torch
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.rounding import Moments, round_gptq, round_nearest
from calib.rounding.base import are_worse
from calib.task import Batch

CHANNELS, FORMATS = 4, [Format.from_text(text) for text in ("w8a8", "w4", "w2")]


def one_pixel(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.shape[-1]) == 3, x, 0.0)


def one_image_in_sixteen(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.shape[-1]) < x.shape[-1] // 2, 0.0, x) * (x[:, :1, :1, :1] > 1.5)


INPUTS = {
    "usual": lambda x: x,
    "zero": lambda x: x * 0,
    "constant": lambda x: x * 0 + 0.7,
    "denormal": lambda x: x * 1e-40,
    "tiny": lambda x: x * 1e-20,
    "huge": lambda x: x * 1e20,
    "rank one": lambda x: x[:, :1, :1, :1].expand_as(x),
    "nearly rank one": lambda x: x[:, :1, :1, :1].expand_as(x) + 1e-4 * x,
    "one pixel": one_pixel,
    "one image": one_image_in_sixteen,
    "one channel alive": lambda x: x * torch.tensor([1.0, 1e-12, 0.0, 1e-30]).reshape(1, -1, 1, 1),
}
WEIGHTS = {
    "usual": lambda w: w,
    "tiny weights": lambda w: w * 1e-20,
    "huge weights": lambda w: w * 1e20,
    "zero weights": lambda w: w * 0,
    "one large weight": lambda w: torch.where(torch.arange(w.shape[-1]) == 0, w * 1e6, w),
}
CASES = [*((name, "usual") for name in INPUTS), *(("nearly rank one", name) for name in WEIGHTS if name != "usual")]


class Adversarial(nn.Module):
    """A depthwise convolution for each case."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS, bias=False) for _ in CASES)
        with torch.no_grad():
            for layer, (_, weights) in zip(self.layers, CASES, strict=True):
                layer.weight.copy_(WEIGHTS[weights](torch.randn_like(layer.weight)))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(INPUTS[name](x)) for layer, (name, _) in zip(self.layers, CASES, strict=True)]


@pytest.fixture(scope="module")
def calibration() -> tuple[Calibration, dict[str, Unit]]:
    torch.manual_seed(0)
    x = torch.randn(16, CHANNELS, 8, 8)
    traced = TracedModel(Adversarial().eval(), (x[:2],))
    units, _ = find_units(traced)
    assert len(units) == 15
    return Calibration(traced, units, [Batch((x,), None)], CalibrationSettings()), {unit.path: unit for unit in units}


def errors(weight: Tensor, rounded: Tensor, moments: Moments) -> Tensor:
    """By how much each channel's output is off, up to a factor; float64."""
    difference = rounded.double().reshape(CHANNELS, 1, -1) - weight.double().reshape(CHANNELS, 1, -1)
    return (difference @ moments.matrix.double() @ difference.transpose(1, 2)).flatten()


@pytest.mark.parametrize("chosen", FORMATS, ids=str)
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda number: " ".join(CASES[number]))
def test_never_worse_than_nearest(calibration, case, chosen):
    calibrated, units = calibration
    unit = units[f"layers.{case}"]
    weight, moments = calibrated.traced.state[unit.weight], calibrated._moments[unit.path]
    rounded = calibrated.weight(unit, chosen)
    floor = torch.zeros(CHANNELS)
    nearest = round_nearest(weight.reshape(CHANNELS, -1), moments, chosen.weight, None, floor)
    assert bool(torch.isfinite(rounded.dequantize()).all())
    ours, theirs = (errors(weight, found.dequantize(), moments) for found in (rounded, nearest))
    assert bool((ours <= theirs * (1 + 1e-9)).all()), (ours / theirs).tolist()


def test_inputs_whose_squares_float32_does_not_hold_count(calibration):
    calibrated, units = calibration
    for name in ("tiny", "huge"):
        matrix = calibrated._moments[f"layers.{CASES.index((name, 'usual'))}"].matrix
        usual = calibrated._moments["layers.0"].matrix
        scale = usual.diagonal(dim1=1, dim2=2).mean(1) / matrix.diagonal(dim1=1, dim2=2).mean(1)
        torch.testing.assert_close(matrix * scale[:, None, None], usual)
    assert units


def test_rows_that_float32_cannot_tell_apart_are_told_apart():
    """What two errors add to the output is 1e-10 of what each input alone would."""
    causes = torch.full((1, 2, 2), 1.0)
    first, second = torch.tensor([[1.0, -1.0 + 2e-5]]), torch.tensor([[1.0, -1.0 + 1e-5]])
    assert are_worse(first, second, Moments(causes)).tolist() == [True]
    assert are_worse(second, first, Moments(causes)).tolist() == [False]


def test_a_row_is_rounded_to_nearest_where_that_is_better():
    """The step found for GPTQ by the diagonal is not the best one where inputs cancel."""
    generator = torch.Generator().manual_seed(0)
    better = 0
    for _ in range(20):
        x = torch.randn(50, 1, generator=generator) @ torch.randn(1, 9, generator=generator)
        weight, moments = torch.randn(8, 9, generator=generator), Moments((x.T @ x / 50)[None])
        ours, theirs = (
            method(weight, moments, FORMATS[1].weight, None, torch.zeros(8)) for method in (round_gptq, round_nearest)
        )
        found = [
            ((rounded.dequantize() - weight).double() @ moments.matrix[0].double()).square().sum(1)
            for rounded in (ours, theirs)
        ]
        assert bool((found[0] <= found[1] * (1 + 1e-9)).all())
        better += int((found[0] < found[1]).sum())
    assert better > 100
