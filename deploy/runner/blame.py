"""Which ONNX nodes a message of a runtime names, never which words it uses."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARKED = re.compile(r"'([^']+)'|\"([^\"]+)\"|`([^`]+)`|\[([^\[\]]+)\]|\(([^()]+)\)|\{([^{}\[\]]+)\}")
"""What stands in quotes or brackets."""
_FUSED = r"(?:PWN\(\S*(?:(?<=,) \S+)*|\(Unnamed Layer\* \d+\)|[^\s{]\S*)(?: \[[\w ]+\])?"
"""One layer of a fused one: a name, a pointwise expression, or a layer without a name; TensorRT may write its type
behind it.
"""
_NODES_OF_TENSORRT = re.compile(rf"\bimplementation for node ({_FUSED}(?: (?:\+|\|\|) {_FUSED})*)")
"""TensorRT's own sentence, as in "Could not find any implementation for node conv1 + relu1.", whatever comes behind
it.
"""
_SEPARATORS = re.compile(r"\.\.\.|,| \+ | \|\| | \[|PWN\(|\)")


def nodes_named(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the ONNX nodes `names` that a message names, in their order.

    A name counts where it stands alone, or in a list, within quotes or brackets, or where TensorRT says "implementation
    for node". It does not count as a word of a sentence: layers may be called "memory" or "of".
    """
    spans = [part for groups in _MARKED.findall(text) for part in groups if part]
    spans += _NODES_OF_TENSORRT.findall(text)
    told = {piece.strip().rstrip(".") for span in spans for piece in _SEPARATORS.split(span)}
    return tuple(name for name in names if name in told)
