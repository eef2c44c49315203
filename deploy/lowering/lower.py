"""Carry out a quantisation plan on the float ONNX model, in the form that a runtime turns into integer kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calib.errors import UserError
from calib.network.units import Unit
from deploy.files.engine import ExportFile
from deploy.lowering.export import OPSET, ORIGINS
from deploy.lowering.onnx_files import load_model, save_model, sha256, size_bytes
from deploy.lowering.passes.convert_to_fp16 import convert_to_fp16
from deploy.lowering.passes.declare_opset import declare_opset
from deploy.lowering.passes.drop_clips import drop_clips
from deploy.lowering.passes.editing import gather_nodes, unit_nodes
from deploy.lowering.passes.fix_batch import fix_batch
from deploy.lowering.passes.multiply_rows import multiply_rows
from deploy.lowering.passes.pad_integers import pad_integers
from deploy.lowering.passes.quantize_biases import quantize_biases
from deploy.lowering.passes.quantize_rows import quantize_rows
from deploy.lowering.passes.quantize_tensors import quantize_tensors
from deploy.lowering.passes.quantize_weights import quantize_weights
from deploy.lowering.passes.split_gemm import split_gemm
from deploy.lowering.passes.split_outside import split_outside
from smpq.quantized.plan import QuantPlan


@dataclass(frozen=True)
class Lowering:
    """What a runtime wants of the file; each back end of `deploy.backends` says it.

    1. `half`: half precision for everything that is float.
    2. `fixed_batch`: the batch size stands in the file.
    3. `integer_matmul`: linear layers with integer inputs are MatMul and Add; those with integer weights always are.
    4. `copied_from_bits`: weights of that many bits or more are stored for each call, None for once.
    5. `matrix_rows`: layers with blocks of integer weights multiply rows of a matrix.
    6. `integer_biases`: biases of integer convolutions, and of linear layers as the plan says, are int32.
       `integers_between`: what stands between integer layers and would turn integers to floats there is written without
       floats.
    7. `least_opset`: the file declares the oldest opset that its operators need. `newest_opset` is the newest one that
       a weight's type may ask for.
    8. `packed_rows`: rows of an embedding, and the head that is tied to it, in ONNX Runtime's own operators.
    9. `outer_splits`: the heads of attention are split along an outer axis.
    """

    half: bool
    fixed_batch: bool = False
    integer_matmul: bool = False
    copied_from_bits: int | None = None
    matrix_rows: bool = False
    integer_biases: bool = False
    integers_between: bool = False
    least_opset: bool = False
    packed_rows: bool = False
    outer_splits: bool = False
    newest_opset: int = OPSET

    @property
    def keeps_float(self) -> bool:
        """Whether a file without integers is taken as it was exported."""
        return not (self.half or self.fixed_batch)


@dataclass(frozen=True)
class LoweringReport:
    """What became of a plan: pass -> number of places it changed, tensors of the plan merged by the exporter, the file
    made.
    """

    changes: Mapping[str, int]
    merged_tensors: tuple[str, ...]
    size_bytes: int
    sha256: str

    def to_file(self, policy_key: str, target: str) -> ExportFile:
        """Return the file form; `policy_key` names the policy that was lowered, and its fine-tuned weights."""
        return ExportFile(
            policy=policy_key,
            target=target,
            changes=dict(self.changes),
            merged_tensors=self.merged_tensors,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
        )


def lower(
    float_model: Path, plan: QuantPlan, units: Sequence[Unit], lowering: Lowering, out: Path, batch: int | None = 1
) -> LoweringReport:
    """Write the model of `plan` to `out`.

    Weights stand behind DequantizeLinear, activations between QuantizeLinear and DequantizeLinear. `batch` is the size
    of every batch where `lowering` fixes it; None leaves it free all the same, and the builder then needs batch sizes.

    Raises UserError when `float_model` cannot be read, is not the model of the plan, or does not run with `batch`.
    """
    model = load_model(float_model)
    _check_same_model(float_model, model, plan, units)
    changes: dict[str, int] = {}
    if lowering.fixed_batch and batch is not None:
        changes["fix_batch"] = fix_batch(model, batch)
    changes["split_gemm"] = split_gemm(model, plan, units, integer_inputs=lowering.integer_matmul)
    changes["quantize_weights"] = quantize_weights(model, plan, units, lowering.newest_opset, lowering.copied_from_bits)
    changes["quantize_rows"] = quantize_rows(model, plan, units, lowering.newest_opset, packed=lowering.packed_rows)
    tensors = quantize_tensors(model, plan, units)
    changes["quantize_tensors"] = tensors.inserted
    if lowering.integers_between:
        changes["drop_clips"] = drop_clips(model)
        changes["pad_integers"] = pad_integers(model)
    if lowering.matrix_rows:
        changes["multiply_rows"] = multiply_rows(model, plan, units)
    if lowering.outer_splits:
        changes["split_outside"] = split_outside(model, plan, units)
    if lowering.integer_biases:
        changes["quantize_biases"] = quantize_biases(model, plan, units)
    if lowering.half:
        changes["convert_to_fp16"] = convert_to_fp16(model, plan, units)
    if lowering.least_opset:
        changes["declare_opset"] = int(declare_opset(model))
    save_model(model, out)
    return LoweringReport(changes, tensors.merged, size_bytes(out), sha256(out))


def _check_same_model(path: Path, model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> None:
    """Refuse a file that is not the one that was exported: a layer that is not found would silently stay float, and
    an operator would become half.
    """
    opset = model.opset_imports.get("", 0)
    if opset < OPSET:
        raise UserError(
            f"{path} has opset {opset}, and integer weights need opset {OPSET}: delete it, it is exported again"
        )
    if plan.in_float32 and ORIGINS not in model.metadata_props:
        raise UserError(f"{path} does not say what its nodes are for: delete it, it is exported again")
    for unit in units:
        if not unit_nodes(model, unit) and not gather_nodes(model, unit):
            raise UserError(
                f"{path} is not of this model, it has no layer {unit.path}: delete it, it is exported again"
            )
