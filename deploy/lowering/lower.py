"""Carry out a quantisation plan on the float ONNX model, in the form that a target's runtime turns into integer
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calib.errors import UserError
from calib.formats.format import FP16
from calib.network.units import Unit
from deploy.files.engine import ExportFile
from deploy.lowering.export import OPSET
from deploy.lowering.onnx_files import load_model, save_model, sha256, size_bytes
from deploy.lowering.passes.convert_to_fp16 import convert_to_fp16
from deploy.lowering.passes.declare_opset import declare_opset
from deploy.lowering.passes.editing import unit_nodes
from deploy.lowering.passes.fix_batch import fix_batch
from deploy.lowering.passes.multiply_rows import multiply_rows
from deploy.lowering.passes.quantize_biases import quantize_biases
from deploy.lowering.passes.quantize_tensors import quantize_tensors
from deploy.lowering.passes.quantize_weights import quantize_weights
from deploy.lowering.passes.split_gemm import split_gemm
from deploy.targets.target import Target
from smpq.quantized.plan import QuantPlan

_COPY_FROM_BITS = 8
"""ONNX Runtime rewrites weights beyond 7 bits where the CPU would overflow, and fails when it meets the same one a
second time.
"""


@dataclass(frozen=True)
class LoweringReport:
    """What became of a plan: pass -> number of places it changed, tensors of the plan merged by the exporter, the file
    made.
    """

    target: str
    changes: Mapping[str, int]
    merged_tensors: tuple[str, ...]
    size_bytes: int
    sha256: str

    def to_file(self, policy_key: str) -> ExportFile:
        """Return the file form; `policy_key` names the policy that was lowered, and its fine-tuned weights."""
        return ExportFile(
            policy=policy_key,
            target=self.target,
            changes=dict(self.changes),
            merged_tensors=self.merged_tensors,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
        )


def lower(
    float_model: Path, plan: QuantPlan, units: Sequence[Unit], target: Target, out: Path, batch: int | None = 1
) -> LoweringReport:
    """Write the model of `plan` for `target` to `out`.

    1. `onnxruntime`: weights behind DequantizeLinear, activations between QuantizeLinear and DequantizeLinear, int32
       biases of convolutions; linear layers with integer weights as MatMul and Add. The batch stays dynamic.
    2. `simulate`: float biases, so that the file computes what the fake-quantised model does; only weight-only layers
       as MatMul and Add.
    3. `tensorrt`: float biases; layers with blocks of integer weights multiply rows of a matrix; `batch` samples in
       every batch, or with None a free batch, for which the builder needs `batch_sizes`.
    4. A target whose float format is fp16: half precision for everything that is float.

    Raises UserError when `float_model` cannot be read, is not the model of the plan, or does not run with `batch`.
    """
    model = load_model(float_model)
    _check_same_model(float_model, model, units)
    changes: dict[str, int] = {}
    if target.lowering == "tensorrt" and batch is not None:
        changes["fix_batch"] = fix_batch(model, batch)
    onnxruntime = target.lowering == "onnxruntime"
    changes["split_gemm"] = split_gemm(model, plan, units, integer_inputs=onnxruntime)
    changes["quantize_weights"] = quantize_weights(
        model, plan, units, target.newest_opset, _COPY_FROM_BITS if onnxruntime else None
    )
    tensors = quantize_tensors(model, plan, units)
    changes["quantize_tensors"] = tensors.inserted
    if target.lowering == "tensorrt":
        changes["multiply_rows"] = multiply_rows(model, plan, units)
    if onnxruntime:
        changes["quantize_biases"] = quantize_biases(model, plan, units)
    if target.reference == FP16:
        changes["convert_to_fp16"] = convert_to_fp16(model, plan, units)
    if target.lowering == "tensorrt":
        changes["declare_opset"] = int(declare_opset(model))
    save_model(model, out)
    return LoweringReport(target.name, changes, tensors.merged, size_bytes(out), sha256(out))


def _check_same_model(path: Path, model: ir.Model, units: Sequence[Unit]) -> None:
    """Refuse a file that is not the one that was exported: a layer that is not found would silently stay float."""
    opset = model.opset_imports.get("", 0)
    if opset < OPSET:
        raise UserError(
            f"{path} has opset {opset}, and integer weights need opset {OPSET}: delete it, it is exported again"
        )
    for unit in units:
        if not unit_nodes(model, unit):
            raise UserError(
                f"{path} is not of this model, it has no layer {unit.path}: delete it, it is exported again"
            )
