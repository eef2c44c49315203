"""Build small graphs with TensorRT-RTX, for the tests of that back end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from calib.formats.format import FP32, Format
from deploy.backends.tensorrt import BuildFailed, Built, UnitCheck, build_plan, check_units
from tests.deploy.backends.graphs import Layer, one_layer

W8A8, W8, W4, W4B32 = (Format.from_text(text) for text in ("w8a8", "w8a16", "w4a16", "w4a16b32"))

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def build(
    model: onnx.ModelProto, folder: Path, compute_capability: str | None = "sm86", **options
) -> Built | BuildFailed:
    source = folder / "model.onnx"
    onnx.save(model, source)
    return build_plan(source, folder / "model.plan", "tensorrt-rtx", compute_capability, **options)


def build_layer(
    layer: Layer, folder: Path, compute_capability: str | None = "sm86", opset: int = 21
) -> Built | BuildFailed:
    return build(one_layer(layer, half=layer.format != FP32, opset=opset), folder, compute_capability)


def check_layer(layer: Layer, folder: Path, compute_capability: str | None = "sm86", opset: int = 21) -> UnitCheck:
    record = build_layer(layer, folder, compute_capability, opset)
    assert isinstance(record, Built), record
    (check,) = check_units(record.layers, {layer.name: layer.format})
    return check


def reason_of(outcome: Built | BuildFailed) -> str:
    assert isinstance(outcome, BuildFailed), outcome
    return outcome.reason
