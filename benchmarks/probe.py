"""Build one layer in one format, and say what the runtime made of it: how capability tables are checked."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP16, FP32, Format
from calib.formats.integers import integer
from calib.formats.number_type import NUMBER_TYPES
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.task import Batch
from deploy.backends import backend_of
from deploy.backends.base import BuildFailed
from deploy.lowering.export import export_float
from deploy.lowering.onnx_files import load_model
from deploy.run.workspace import rules_of
from deploy.targets.offers import offer
from deploy.targets.rules import EMBEDDINGS, OPERATORS, Capability, Status
from deploy.targets.target import Target
from smpq.quantized.quantize import FakeQuantizer

ROWS = 4
_CHANNELS = 64
_FEATURES = 256
_UNIT = "unit"
_FORMATS = (
    FP32,
    FP16,
    Format.from_text("fp8"),
    Format.from_text("wfp8a16"),
    Format.from_text("wt7a8"),
    Format.from_text("wt8a8"),
    Format.from_text("wz4a16b32"),
    Format.from_text("wm2.5a16b32"),
    Format.from_text("wc2a16"),
    Format.from_text("wc2.5a16"),
    *(
        Format.from_text(f"w{bits}{rest}")
        for rest in ("a4", "a7", "a8", "a16", "a16b2", "a16b8", "a16b16", "a16b32", "a16b64", "a16b128", "a16b256")
        for bits in range(1, 9)
    ),
)
"""Every form that a rule may name."""


@dataclass(frozen=True)
class Finding:
    """What became of one layer.

    `status` is that of a capability table: `native`, `dequantized`, or `refused` when it did not build or is not the
    format. `what` is the kernel, or the reason of the runtime. `stored_as` is the format of the integer types that hold
    the layer, None when nothing was built.
    """

    status: Status
    what: str
    stored_as: Format | None = None


@dataclass(frozen=True)
class _Network:
    traced: TracedModel
    units: tuple[Unit, ...]
    model: Path
    batch: Tensor
    folder: tempfile.TemporaryDirectory[str]


def probe(target: Target, operator: str, format_: Format) -> Finding:
    """Export a layer of kind `operator`, lower it in `format_` for the target, build it, and read what it became.

    Convolutions have 64 channels and kernels of 3, linear layers 256 inputs and outputs and several rows, embeddings
    256 rows of 256. A layer in
    fp32 on a target whose float format is fp16 stands between two in fp16, since alone it would make another network. A
    target with several compute capabilities is tried for the first. Raises UserError when the runtime is not installed.
    """
    network = _network(operator, neighbours=format_ == FP32 and target.reference == FP16)
    formats = {unit.path: format_ if unit.path == _UNIT else target.reference for unit in network.units}
    with tempfile.TemporaryDirectory() as directory:
        model, engine = Path(directory) / "model.onnx", Path(directory) / "engine.onnx"
        backend, plan = backend_of(target), _quantizer(network, target).plan(formats)
        try:
            backend.lower(network.model, plan, network.units, model, ROWS)
        except ValueError as error:  # a form that no pass makes, as block scales of a convolution
            return Finding("refused", f"is not lowered: {error}")
        built = backend.build(model, engine, next(iter(target.compute_capabilities), ""))
        if isinstance(built, BuildFailed):
            return Finding("refused", f"does not build: {built.reason}")
        kernels = backend.unit_kernels(engine, built.layers, network.units, formats)
        (kernel,) = [kernel for kernel in kernels if kernel.path == _UNIT]
        status: Status = "dequantized" if "dequantize" in kernel.kernel.lower() else "native"
        return Finding(status if kernel.agrees else "refused", kernel.kernel, _stored_format(model, format_))


def disagreement(answer: Capability, format_: Format, found: Finding) -> str:
    """Return how a finding contradicts a capability table's answer for `format_`, or an empty string.

    1. `native` and `dequantized` have to be found as they are, in the integer types that the table says. 2. `refused`
       is right for
    what does not build, becomes something else, or is held by other types than its name says. 3. `unknown` says
    nothing, and what was measured is about times.
    """
    real = found.status if found.stored_as == (answer.stored_as or format_) else "refused"
    if answer.measured or answer.status in ("unknown", real):
        return ""
    stored = f", stored as {found.stored_as}" if found.stored_as not in (None, format_) else ""
    return f"the table says {answer.status}, found {found.status}: {found.what}{stored}"


def cases(target: Target) -> list[tuple[str, Format]]:
    """Return the operators and formats to try: for each operator and each rule that decides about it the first, middle
    and last format.
    """
    chosen = []
    for operator in OPERATORS:
        (unit,) = _network(operator, neighbours=False).units
        decided: dict[tuple[str, str], list[Format]] = {}
        for format_ in _FORMATS:
            if format_.weight_block is None or unit.in_features % format_.weight_block == 0:
                answer = stated(target, operator, format_)
                decided.setdefault((answer.status, answer.note), []).append(format_)
        for formats in decided.values():
            few = (formats[0], formats[len(formats) // 2], formats[-1])
            chosen += [(operator, format_) for format_ in dict.fromkeys(few)]
    return chosen


def stated(target: Target, operator: str, format_: Format) -> Capability:
    """Return what the capability table says about the layer that `probe` builds."""
    (unit,) = _network(operator, neighbours=False).units
    return offer(target, unit, format_, ROWS)


def _stored_format(model: Path, format_: Format) -> Format:
    """Return the format that the types of a lowered file can tell."""
    graph = load_model(model).graph
    node = next(node for node in graph if node.name == _UNIT)
    bits = node.attributes.get_int("bits", 0)  # of ONNX Runtime's own operators
    weight = node.inputs[0 if "Gather" in node.op_type else 1]
    maker = weight.producer() if weight is not None else None
    one_scale = False
    while maker is not None and maker.inputs[0] is not None:
        scale = maker.inputs[1] if maker.op_type == "DequantizeLinear" else None
        one_scale |= scale is not None and scale.shape is not None and len(scale.shape) == 0
        weight = maker.inputs[0]
        maker = weight.producer()
    assert weight is not None
    assert weight.dtype is not None
    held = (f"INT{bits}", bits) if bits else (weight.dtype.name.removeprefix("U"), weight.dtype.bitwidth)
    stored = next(
        found
        for found in NUMBER_TYPES.values()
        if (found.weight_storages[0].onnx_type, found.bits) == held and found.one_scale == one_scale
    )
    if not stored.quantized:
        return Format(stored)
    reads = format_.activation
    return Format(stored, integer(8) if reads is not None and reads.is_integer else reads, format_.weight_block)


def _quantizer(network: _Network, target: Target) -> FakeQuantizer:
    settings = CalibrationSettings(observer="minmax", rounding="nearest", scheme=target.activation_scheme)
    calibration = Calibration(network.traced, network.units, [Batch((network.batch,), None)], settings)
    return FakeQuantizer(network.traced, network.units, calibration, rules_of(target))


@cache
def _network(operator: str, *, neighbours: bool) -> _Network:
    """Return a network of the layer `unit`, exported; between two others of the same kind, if asked for."""
    module = nn.Sequential()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        rows = operator in EMBEDDINGS
        for name in ("before", _UNIT, "behind")[rows:] if neighbours else (_UNIT,):
            module.add_module(name, _layer("linear_nd" if rows and name != _UNIT else operator))
            if neighbours:
                module.add_module(f"{name}_act", nn.ReLU())
        batch = torch.randint(_FEATURES, (ROWS, 8)) if rows else torch.randn(ROWS, *_shape(operator))
    folder = tempfile.TemporaryDirectory(prefix="smpq-probe-")
    traced = TracedModel(module.eval(), (batch,))
    units, _ = find_units(traced)
    model = Path(folder.name) / "model.float.onnx"
    export_float(traced, units, model)
    return _Network(traced, units, model, batch, folder)


class _Tied(nn.Embedding):
    """Looks up rows, and multiplies by them."""

    def forward(self, words: Tensor) -> Tensor:
        return functional.linear(torch.relu(super().forward(words)), self.weight)


def _layer(operator: str) -> nn.Module:
    if operator in EMBEDDINGS:
        return (_Tied if operator == "tied_embedding" else nn.Embedding)(_FEATURES, _FEATURES)
    if operator in ("linear", "linear_nd"):
        return nn.Linear(_FEATURES, _FEATURES)
    kind: Any = {"1d": nn.Conv1d, "2d": nn.Conv2d, "3d": nn.Conv3d}[operator[-2:]]
    groups = {"depthwise": _CHANNELS, "grouped": 4}.get(operator.partition("_")[0], 1)
    layer: nn.Module = kind(_CHANNELS, _CHANNELS, 3, padding=1, groups=groups)
    return layer


def _shape(operator: str) -> tuple[int, ...]:
    if operator == "linear":
        return (_FEATURES,)
    if operator == "linear_nd":
        return (8, _FEATURES)
    return (_CHANNELS, *{"1d": (32,), "2d": (16, 16), "3d": (4, 8, 8)}[operator[-2:]])
