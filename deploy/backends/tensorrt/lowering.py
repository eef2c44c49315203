"""What TensorRT wants of an ONNX file."""

from __future__ import annotations

from calib.formats.format import FP16
from deploy.lowering.lower import Lowering
from deploy.targets.target import Target


def for_tensorrt(target: Target) -> Lowering:
    """Return it: float biases, one batch size, rows of a matrix for blocks, outer splits, an old opset."""
    return Lowering(
        half=target.reference == FP16,
        fixed_batch=True,
        matrix_rows=True,
        outer_splits=True,
        least_opset=True,
        newest_opset=target.newest_opset,
    )
