"""Small networks with what real models contain, exported once, and lowered with plans made the way the tool makes
them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.formats.quantizers import Scheme
from calib.network.fold import trace_folded
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.sizes import InputSizes
from calib.task import Batch
from deploy.backends import backend_of
from deploy.lowering.export import export_float
from deploy.lowering.lower import LoweringReport
from deploy.targets.target import target_from_name
from smpq.quantized.plan import QdqRules, QuantPlan
from smpq.quantized.quantize import FakeQuantizer
from tests.scratch import scratch

FloatArray = npt.NDArray[np.float32]


class Residual(nn.Module):
    """Adds written with `+`, a strided shortcut of slices and zeros, depthwise, grouped, 1-D and repeated layers,
    Linear on 3-D.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.2)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
        self.sequence = nn.Conv1d(16, 16, 3, padding=1)
        self.wide = nn.Linear(16, 16)
        self.plain = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 16)
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        x = F.hardswish(self.depthwise(x))
        x = F.relu(self.twice(self.drop(self.twice(x)))) + x
        x = self.grouped(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.sequence(x.flatten(2))).transpose(1, 2)
        x = F.gelu(self.wide(x)) + self.plain(x)
        return self.last(F.relu(self.head(x.mean(1))))


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Lowered:
    """A lowered file, its plan, and the output of the fake-quantised model on the test batch."""

    path: Path
    plan: QuantPlan
    report: LoweringReport
    expected: FloatArray


@dataclass(frozen=True)
class Exported:
    traced: TracedModel
    units: tuple[Unit, ...]
    path: Path
    batch: Tensor

    def formats(self, *texts: str) -> dict[str, Format]:
        """A format for each unit in order; the last text goes on to the end."""
        return {unit.path: Format.from_text(texts[min(index, len(texts) - 1)]) for index, unit in enumerate(self.units)}

    def plan(self, formats: Mapping[str, Format], target: str) -> tuple[QuantPlan, FakeQuantizer]:
        described = target_from_name(target)
        rules = QdqRules(described.activation_scheme, described.quantize_outputs, described.quantize_skips)
        quantizer = FakeQuantizer(self.traced, self.units, calibration(self, described.activation_scheme), rules)
        return quantizer.plan(formats), quantizer

    def lower(self, formats: Mapping[str, Format], target: str, directory: Path, batch: int = 1) -> Lowered:
        plan, quantizer = self.plan(formats, target)
        out = directory / f"model.{target}.onnx"
        report = backend_of(target_from_name(target)).lower(self.path, plan, self.units, out, batch)
        return Lowered(out, plan, report, self.traced.run((self.batch,), quantizer.edits(plan)).numpy())

    def model(self) -> ir.Model:
        return ir.load(self.path)


@functools.cache
def calibration(exported: Exported, scheme: Scheme) -> Calibration:
    settings = CalibrationSettings(observer="minmax", rounding="nearest", scheme=scheme)
    return Calibration(exported.traced, exported.units, [Batch((exported.batch,), None)], settings)


def export(model: nn.Module, batch: Tensor, directory: Path, sizes: InputSizes | None = None) -> Exported:
    traced, _ = trace_folded(model.eval(), (batch[:2],), inputs=sizes)
    units, _ = find_units(traced)
    path = directory / "model.float.onnx"
    export_float(traced, units, path)
    return Exported(traced, units, path, batch)


@functools.cache
def _exported(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Exported:
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return export(model, torch.randn(64, *shape), scratch())


def residual() -> Exported:
    return _exported(Residual, (3, 8, 8))


def mlp() -> Exported:
    return _exported(Mlp, (1, 8, 8))


def run_plain(path: Path, batch: Tensor, **config: str) -> FloatArray:
    """Run a file in plain onnxruntime with default settings, besides session config entries."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    session = ort.InferenceSession(str(path), options)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])


def run_all_values(path: Path, batch: Tensor) -> dict[str, npt.NDArray[np.generic]]:
    """Every value of a graph, computed without any optimisation."""
    model = onnx.load(str(path))
    outputs = {output.name for output in model.graph.output}
    for node in model.graph.node:
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name not in outputs
        )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: batch.numpy()}), strict=True))


def relative_error(result: FloatArray, expected: FloatArray) -> float:
    """Mean absolute difference in standard deviations of the output."""
    return float(np.abs(result - expected).mean() / expected.std())


def nodes(path: Path) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in onnx.load(str(path)).graph.node}


def constants(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


def quantisers(path: Path) -> set[tuple[str, str]]:
    """Q/DQ nodes by operator and name. One that several nodes read is written once for each of them, whatever the
    settings.
    """
    found = nodes(path).values()
    return {(node.op_type, node.name.removesuffix("/duplicated")) for node in found if node.op_type.endswith("eLinear")}
