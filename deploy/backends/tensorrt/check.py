"""Check the format that was planned for every unit against the kernel it became."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from calib.formats.format import FP16, FP32, Format
from deploy.devices.messages import Layer, Tensor

_PRODUCTS = ("correlation", "gemm", "runtime_fusion")
"""In the builder's words: a convolution, and matrix products. `kgen` is generated code: pointwise work and, for one
row of input, matrix-vector products too.
"""
# TensorRT 10's inspector: CaskConvolution, CaskGemmConvolution, CaskGemmMatrixMultiply, ...; as published by its users,
# not seen here.
_PRODUCT_PREFIX = "Cask"
_FLOAT_NAMES = {"Half": "fp16", "Float": "fp32", "TF32": "tf32", "BFloat16": "bf16"}
_STORED = {"Int4": ("INT4", 4), "Int8": ("INT8", 8), "FP8": ("FLOAT8E4M3FN", 8)}
"""Types of quantised weights in the builder's words: the ONNX type, and its bits."""


@dataclass(frozen=True)
class UnitCheck:
    """One unit: its path (with `#k` for a repeat), what was planned, what its kernel computes in, whether that is the
    same.

    `found` is one of

    1. `int8`, `fp8`: weight and input are of that type;
    2. `int4-weight-only`, `int8-weight-only`, `fp8-weight-only`: the values are a constant of the kernel that
       multiplies, the input is float;
    3. `dequantized`: a kernel of its own turns the weight into floats on every run, then a float kernel multiplies;
    4. `fp16`, `fp32`, `tf32`, `bf16`: nothing is quantised;
    5. `missing`: no kernel names the unit; `kernel` is empty.

    `kernel` is the kind and the name of the kernel, as the builder's log has them.
    """

    path: str
    planned: Format
    found: str
    agrees: bool
    kernel: str


def check_units(kernels: Sequence[Layer], planned: Mapping[str, Format]) -> list[UnitCheck]:
    """Compare every unit's planned format with the kernel it became, in the order of `planned`.

    The keys of `planned` are the names of the ONNX nodes that multiply (Conv, MatMul, Gemm). What agrees:

    1. `w8a8` with `int8`, `fp8` with `fp8`;
    2. `w4a16b128` with `int4-weight-only` alone, because blocks are there to be fused;
    3. `w4a16`, `w8a16` and `wfp8a16`, with or without a block for the second, with the fused kernel or with
       `dequantized` from the same bits, since which of the two it is depends on the operator (the capability table
       knows);
    4. `fp16` with itself; `fp32` also with `tf32`.
    """
    dequantized = _dequantized_bits(kernels)
    return [_check(path, format_, kernels, dequantized) for path, format_ in planned.items()]


def _check(path: str, planned: Format, kernels: Sequence[Layer], dequantized: Mapping[str, int]) -> UnitCheck:
    kernel = _product_kernel(path, kernels)
    if kernel is None:
        return UnitCheck(path, planned, "missing", agrees=False, kernel="")
    stored = min(
        (tensor.dtype for tensor in kernel.constants if _is_stored(tensor.dtype, tensor.shape)), key=_bits, default=""
    )
    unpacked = min((dequantized[tensor.name] for tensor in kernel.inputs if tensor.name in dequantized), default=0)
    if stored:
        quantized_input = any(tensor.dtype in _STORED and tensor.name not in dequantized for tensor in kernel.inputs)
        found = stored.lower() if quantized_input else f"{stored.lower()}-weight-only"
    elif unpacked:
        found = "dequantized"
    else:
        found = _float_name(kernel)
    agrees = found in _expected(planned) and (found != "dequantized" or unpacked == planned.weight_bits)
    return UnitCheck(path, planned, found, agrees, f"{kernel.kind} {kernel.name}".strip())


def _expected(planned: Format) -> tuple[str, ...]:
    if planned == FP16:
        return ("fp16",)
    if planned == FP32:
        return ("fp32", "tf32")
    held = planned.weight.weight_storages[0].onnx_type, planned.weight_bits
    if held not in _STORED.values():
        return ()
    word = next(word for word, stored in _STORED.items() if stored == held)
    if planned.quantizes_activation:
        return (word.lower(),) if planned.activation == planned.weight else ()
    fused = f"{word.lower()}-weight-only"
    blocks_of_four_bits = planned.weight_bits == 4 and planned.weight_block is not None
    return (fused,) if blocks_of_four_bits else (fused, "dequantized")


def _bits(word: str) -> int:
    return _STORED[word][1]


def _product_kernel(path: str, kernels: Sequence[Layer]) -> Layer | None:
    """Find the kernel that multiplies. The unit's name also stands on what was fused around it: padding, scales, the
    epilogue.
    """
    own = [kernel for kernel in kernels if path in kernel.onnx_nodes]
    for kernel in own:
        if kernel.kind in _PRODUCTS or kernel.kind.startswith(_PRODUCT_PREFIX):
            return kernel
    # With a single row of input the product is generated code, and holds its weight as a constant or reads it
    # dequantised.
    for kernel in own:
        if kernel.inputs and any(map(_is_matrix, kernel.constants)):
            return kernel
    return next((kernel for kernel in own if kernel.inputs), None)


def _dequantized_bits(kernels: Iterable[Layer]) -> dict[str, int]:
    """Return the tensors that are computed from quantised constants alone, with the bits of the narrowest of these."""
    bits: dict[str, int] = {}
    from_constants: set[str] = set()
    for kernel in kernels:  # in the order they run, so that what a kernel reads has been seen
        if not kernel.outputs or any(tensor.name not in from_constants for tensor in kernel.inputs):
            continue
        from_constants.update(tensor.name for tensor in kernel.outputs)
        widths = [_bits(tensor.dtype) for tensor in kernel.constants if _is_stored(tensor.dtype, tensor.shape)]
        widths += [bits[tensor.name] for tensor in kernel.inputs if tensor.name in bits]
        if widths:
            bits.update((tensor.name, min(widths)) for tensor in kernel.outputs)
    return bits


def _is_stored(dtype: str, shape: Sequence[int]) -> bool:
    return dtype in _STORED and any(size > 1 for size in shape)


def _is_matrix(tensor: Tensor) -> bool:
    """Whether at least two dimensions are longer than 1, as in a weight and unlike in a scale or bias per channel."""
    return sum(size > 1 for size in tensor.shape) > 1


def _float_name(kernel: Layer) -> str:
    weights = [tensor for tensor in kernel.constants if _is_matrix(tensor)] or [*kernel.inputs]
    names = {_FLOAT_NAMES.get(tensor.dtype, tensor.dtype.lower()) for tensor in weights}
    return "/".join(sorted(names))
