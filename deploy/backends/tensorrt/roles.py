"""What kernels of a plan are for, by the runtime's names for them."""

from __future__ import annotations

import re

from deploy.devices.messages import Layer
from deploy.files.profile import Role

_GENERATED = re.compile(r"^__my[le]n?_(?P<words>[A-Za-z]+?)_myl")
"""Names of generated kernels of TensorRT-RTX 1.7 and of the same compiler in TensorRT 10 and 11, as in
`__myl_MulMinMaxRounCast_myl0_0`.
"""
_WORD = re.compile(r"[A-Z][a-z0-9]*")
_COPIES = {"Move", "Copy"}
_REFORMATS = _COPIES | {"Tran", "Resh", "Cast", "Slic", "Conc", "Repl", "Pad", "Sque", "Unsq"}
_ROUNDS = "Roun"
_KINDS: dict[str, Role] = {
    "Reformat": "reformat",
    "Shuffle": "reformat",
    "NoOp": "copy",
    "Identity": "copy",
    "Quantize": "quantize",
    "Dequantize": "quantize",
}
"""Of `LayerType` in TensorRT's inspector."""
_COPY_NAME = re.compile(r"(^|[ _])copy$", re.IGNORECASE)
"""TensorRT's name for the copy that a concatenation needs: the tensor's, and the word."""
_REFORMAT_NAME = "Reformatting CopyNode"
_QUANTIZE_NAME = re.compile(r"QuantizeLinear|_quantize(_scale_node)?\b|/(Q|DQ)$")
_INTEGERS = {"Int8", "Int4", "FP8"}


def role_of(kernel: Layer) -> Role:
    """Say what a kernel is for that computes no layer of the model."""
    generated = _GENERATED.match(kernel.name)
    if generated is not None:
        words = set(_WORD.findall(generated["words"]))
        if words <= _COPIES:
            return "copy"
        if words <= _REFORMATS:
            return "quantize" if _changes_precision(kernel) else "reformat"
        return "quantize" if _ROUNDS in words else "other"
    if kernel.name.startswith(_REFORMAT_NAME):  # whose rest is the name of the kernel that wants it
        return "reformat"
    if kernel.kind == "Reformat" and _COPY_NAME.search(kernel.name):
        return "copy"
    found = _KINDS.get(kernel.kind, "other")
    if found in ("reformat", "other") and (
        _QUANTIZE_NAME.search(kernel.name) or (found == "reformat" and _changes_precision(kernel))
    ):
        return "quantize"
    return found


def _changes_precision(kernel: Layer) -> bool:
    """Whether integers become floats in it, or floats integers."""
    read, written = ({tensor.dtype in _INTEGERS for tensor in tensors} for tensors in (kernel.inputs, kernel.outputs))
    return len(read) == 1 and len(written) == 1 and read != written
