"""Networks with what half precision is known to break, and what becomes of them in a file for a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.sizes import InputSizes
from calib.task import Batch
from deploy.backends import backend_of
from deploy.lowering.export import export_float
from deploy.lowering.fp16_range import keeping_float32
from deploy.targets.target import target_from_name
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer

SAMPLES, TOKENS, WIDTH = 4, 6, 16
OF_TOKENS = InputSizes(((TOKENS, WIDTH),), ((2, WIDTH),), ((9, WIDTH),), (((TOKENS, WIDTH),), ((4, WIDTH),)))


class Net(nn.Module):
    """Layers by name, and what to do with them and the inputs."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


class NetOfOne(Net):
    """The same with one input of a name."""

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@dataclass
class Lowered:
    """A file for a target, and what runs on CPUs of it: `run(*inputs)` returns its outputs."""

    path: Path
    model: nn.Module
    inputs: tuple[Tensor, ...]
    lower_again: Callable[[], object]

    def run(self, *inputs: Tensor) -> list[npt.NDArray[Any]]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = ort.InferenceSession(
            str(self.path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["NchwcTransformer"],  # it crashes at a Transpose of halves on the CPU (1.31.1)
        )
        names = [entry.name for entry in session.get_inputs()]
        return list(session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}))

    def error(self, *inputs: Tensor) -> float:
        """Largest difference from the module, in standard deviations of each output; types and shapes must agree."""
        given = inputs or self.inputs
        with torch.no_grad():
            expected = [leaf.numpy() for leaf in pytree.tree_leaves(self.model(*given))]
        worst = 0.0
        for found, wanted in zip(self.run(*given), expected, strict=True):
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            gap = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
            assert np.isfinite(gap).all()
            worst = max(worst, float(gap.max() / (wanted.astype(np.float64).std() + 1e-6)))
        return worst


def lowered(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    directory: Path,
    target_name: str = "tensorrt-rtx",
    text: str = "fp16",
    sizes: InputSizes | None = None,
) -> Lowered:
    """Calibrate, check, plan and lower a network whose layers all have one format."""
    target = target_from_name(target_name)
    traced, _ = trace_folded(model.eval(), inputs, inputs=sizes)
    units, _ = find_units(traced)
    settings = CalibrationSettings("minmax", "nearest", target.activation_scheme)
    calibration = Calibration(traced, units, [Batch(inputs, None)], settings)
    rules = QdqRules(target.activation_scheme, target.quantize_outputs, target.quantize_skips)
    rules = keeping_float32(rules, calibration, units, print)
    plan = FakeQuantizer(traced, units, calibration, rules).plan({unit.path: Format.from_text(text) for unit in units})
    exported, path = directory / "model.float.onnx", directory / f"{target_name}.onnx"
    export_float(traced, units, exported)
    batch = None if sizes is not None else len(inputs[0])
    lower = functools.partial(backend_of(target).lower, exported, plan, units, path, batch)
    lower()
    return Lowered(path, model, inputs, lower)
