import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.formats.integers import integer
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.rounding import ROUNDINGS, Moments, round_nearest
from calib.task import Batch

W8A8, W4 = Format.from_text("w8a8"), Format.from_text("w4b4")


def calibrated(model: nn.Module, *batches: Tensor, settings: CalibrationSettings | None = None) -> Calibration:
    traced = TracedModel(model.eval(), (batches[0][:2],))
    units, _ = find_units(traced)
    return Calibration(traced, units, [Batch((batch,), None) for batch in batches], settings or CalibrationSettings())


def patches_by_hand(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """`[groups, n, k]`, one output position at a time."""
    top, left = layer.padding
    x = F.pad(x, (left, left, top, top))
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    rows = []
    for image in x.reshape(x.shape[0], layer.groups, -1, *x.shape[2:]):
        for i in range(0, x.shape[2] - dh * (kh - 1), sh):
            for j in range(0, x.shape[3] - dw * (kw - 1), sw):
                patch = image[:, :, i : i + dh * (kh - 1) + 1 : dh, j : j + dw * (kw - 1) + 1 : dw]
                rows.append(patch.reshape(layer.groups, -1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 1), padding=(1, 0), stride=(1, 2)),
        nn.Conv2d(4, 6, 2, dilation=(2, 1)),
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2),
    ],
    ids=["plain", "strided", "uneven", "dilated", "grouped", "depthwise"],
)
def test_moments_of_a_convolution(layer):
    x = torch.randn(3, 4, 7, 8)
    patches = patches_by_hand(x, layer)
    # the patches are right when they give the layer's output
    weight = layer.weight.reshape(layer.groups, -1, patches.shape[2])
    output = (
        torch.einsum("gnk,gok->ngo", patches, weight).reshape(3, -1, layer.out_channels).transpose(1, 2)
        + layer.bias[:, None]
    )
    torch.testing.assert_close(output, layer(x).flatten(2))
    moments = calibrated(nn.Sequential(layer), x)._moments["0"].matrix
    torch.testing.assert_close(moments, patches.transpose(1, 2) @ patches / patches.shape[1])


def test_moments_of_a_padding_named_same():
    x = torch.randn(3, 4, 6, 6)
    named, counted = (
        calibrated(nn.Sequential(nn.Conv2d(4, 2, 3, padding=p)), x)._moments["0"].matrix for p in ("same", 1)
    )
    torch.testing.assert_close(named, counted)


def test_moments_of_a_sequence_convolution():
    x = torch.randn(3, 4, 9)
    columns = F.pad(x, (1, 1)).unfold(2, 3, 2)  # [n, channel, position, kernel]
    patches = columns.permute(0, 2, 1, 3).reshape(-1, 12)
    moments = calibrated(nn.Sequential(nn.Conv1d(4, 5, 3, stride=2, padding=1)), x)._moments["0"].matrix
    torch.testing.assert_close(moments[0], patches.T @ patches / len(patches))


@pytest.mark.parametrize("groups", [1, 2])
def test_moments_of_a_volume_convolution(groups):
    layer = nn.Conv3d(4, 6, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1), dilation=(2, 1, 1), groups=groups)
    x = torch.randn(3, 4, 5, 6, 4)
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 2).unfold(4, 2, 1)[..., ::2, :, :]
    patches = windows.permute(1, 0, 2, 3, 4, 5, 6, 7).reshape(groups, 4 // groups, -1, 12)
    patches = patches.permute(0, 2, 1, 3).flatten(2)  # of [group, channel, n, kernel]
    weight = layer.weight.reshape(groups, 6 // groups, -1)
    output = torch.einsum("gnk,gok->gon", patches, weight).reshape(6, 3, -1).transpose(0, 1) + layer.bias[:, None]
    torch.testing.assert_close(output, layer(x).flatten(2))
    moments = calibrated(nn.Sequential(layer), x)._moments["0"].matrix
    torch.testing.assert_close(moments, patches.transpose(1, 2) @ patches / patches.shape[1])


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6)])
def test_moments_of_a_linear_layer_over_several_batches(shape):
    first, second = torch.randn(4, *shape), torch.randn(2, *shape)
    rows = torch.cat([first.reshape(-1, 6), second.reshape(-1, 6)])
    moments = calibrated(nn.Sequential(nn.Linear(6, 3)), first, second)._moments["0"].matrix
    torch.testing.assert_close(moments[0], rows.T @ rows / len(rows))


def test_moments_of_a_layer_that_runs_twice_count_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(torch.sin(self.layer(x)))

    model, x = Twice().eval(), torch.randn(8, 4)
    rows = torch.cat([x, torch.sin(model.layer(x))]).detach()
    torch.testing.assert_close(calibrated(model, x)._moments["layer"].matrix[0], rows.T @ rows / len(rows))


def test_a_large_input_is_sampled_evenly():
    torch.manual_seed(0)
    x = torch.randn(4, 30_000, 3) * torch.tensor([1.0, 2.0, 3.0])
    moments = calibrated(nn.Sequential(nn.Linear(3, 3)), x)._moments["0"].matrix[0]
    torch.testing.assert_close(moments, torch.diag(torch.tensor([1.0, 4.0, 9.0])), rtol=0.1, atol=0.2)


def test_the_sample_of_a_large_image_does_not_stay_on_every_other_column():
    x = torch.zeros(2, 1, 400, 400)
    x[..., ::2] = 1.0
    moments = calibrated(nn.Sequential(nn.Conv2d(1, 1, 1)), x)._moments["0"].matrix
    assert float(moments) == pytest.approx(0.5, abs=0.02)


def test_ranges_cover_inputs_results_and_what_the_relu_leaves():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    x = torch.randn(8, 2, 5, 5)
    calibration = calibrated(model, x, settings=CalibrationSettings(observer="minmax"))
    convolution, _ = find_units(calibration.traced)[0]
    result = model[0](x).detach()
    (relu,) = (node.name for node in calibration.traced.consumers(convolution.calls[0]))
    for name, tensor in {convolution.inputs[0]: x, convolution.calls[0]: result, relu: F.relu(result)}.items():
        quantizer = calibration.quantizer(name, integer(8), "affine")
        expected = (min(float(tensor.min()), 0.0), float(tensor.max()))
        assert quantizer.real_limits == pytest.approx(expected, abs=quantizer.scale)


def test_weights_come_in_the_layout_of_the_layer_and_once():
    calls: list[int] = []

    def counting(weight, moments: Moments, grid, block, floor):
        calls.append(grid.bits)
        return round_nearest(weight, moments, grid, block, floor)

    ROUNDINGS["counting"] = counting
    try:
        model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 8))
        x = torch.randn(4, 4, 4, 4)
        calibration = calibrated(model, x, settings=CalibrationSettings(rounding="counting"))
    finally:
        del ROUNDINGS["counting"]
    units, _ = find_units(calibration.traced)
    convolution, linear = units
    assert calls == []
    advanced: list[int] = []
    formats = [Format.from_text(text) for text in ("w8a8", "w8a16", "w3a8", "fp32")]
    calibration.prepare(units, {"0": formats, "2": [W8A8, W4]}, lambda: advanced.append(1))
    assert len(advanced) == 6
    assert sorted(calls) == [3, 4, 8, 8], (
        "formats that differ in the activation share a weight; a float format has none"
    )
    weight = calibration.weight(convolution, W8A8)
    assert weight.values.shape == (6, 2, 3, 3)
    assert calibration.weight(convolution, W8A8) is weight
    torch.testing.assert_close(weight.dequantize(), model[0].weight.detach(), atol=0.01, rtol=0)
    blocks = calibration.weight(linear, W4)
    assert blocks.scale.shape == (8, 6)
    assert (int(blocks.values.min()), int(blocks.values.max())) >= (integer(4).limits[0], 0)
    torch.testing.assert_close(blocks.dequantize(), model[2].weight.detach(), atol=0.1, rtol=0)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_every_bias_fits_32_bits_in_units_of_both_steps(observer):
    model = nn.Sequential(nn.Conv2d(2, 4, 1))
    with torch.no_grad():
        model[0].weight[1] *= 1e-9  # a tiny row with a large bias
        model[0].bias.copy_(torch.tensor([1.0, 500.0, 0.0, -1e-3]))
    x = torch.randn(4, 2, 5, 5) * 0.01
    calibration = calibrated(model, x, settings=CalibrationSettings(observer))
    (unit,), _ = find_units(calibration.traced)
    for bits in (4, 8):
        step = calibration.quantizer(unit.inputs[0], integer(bits), "affine").scale
        weight = calibration.weight(unit, Format(integer(8), integer(bits)))
        assert bool((model[0].bias.detach().double().abs() / (weight.scale.double() * step) < 2**31 - 1).all())


def test_the_digest_tells_other_weights_and_other_data_and_nothing_else():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(16, 4)

    def digest(x, model=model, bits=(8,)):
        calibration = calibrated(model, x)
        units, _ = find_units(calibration.traced)
        calibration.prepare(units, {"0": [Format(integer(width), integer(8)) for width in bits]}, lambda: None)
        return calibration.digest()

    other = nn.Sequential(nn.Linear(4, 4))
    assert digest(x) == digest(x.clone())
    assert len({digest(x), digest(x, other), digest(x * 1.01), digest(x, bits=(8, 4))}) == 4
