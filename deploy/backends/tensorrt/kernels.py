"""Which kernels a plan consists of, as the builder's verbose log tells; the engine inspector tells the same where there
is a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from deploy.devices.messages import Layer, Tensor
from deploy.runner.trt_layers import nodes_from_metadata, trt_type_name

# One line per kernel. A name is free text and may hold commas and brackets, so the line is split at its keys, not at
# its commas.
_LINE = re.compile(
    r"Name: (?P<name>.*), LayerType: (?P<kind>\S+), Inputs: \[(?P<inputs>.*)\], Constants: \[(?P<constants>.*)\]"
    r", Outputs: \[(?P<outputs>.*)\], TacticName: .*, Metadata: (?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d, ]*)\],.*?Datatype: (?P<dtype>[^,}]+)")


def kernels_from_log(messages: Iterable[str]) -> tuple[Layer, ...]:
    """Return the kernels in the order they run, from the texts of a verbose log of a build with detailed profiling
    verbosity.

    Returns an empty tuple when the log holds no list of kernels. Raises ValueError when it holds one that this code
    cannot read.
    """
    lists = (message for message in messages if message.startswith("Layers:\n"))
    return tuple(_kernel_from_line(line) for message in lists for line in _lines(message))


def _lines(message: str) -> list[str]:
    # One of the separators inside the metadata counts as a line end for str.splitlines, hence the plain split.
    body = message.removeprefix("Layers:\n").split("\n\n", 1)[0]
    return [line for line in body.split("\n") if line.strip()]


def _kernel_from_line(line: str) -> Layer:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"unknown kernel description in the builder's log: {line!r}")
    return Layer(
        kind=match["kind"],
        name=match["name"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"]),
        outputs=_tensors(match["outputs"]),
        onnx_nodes=nodes_from_metadata(match["metadata"]),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=match["name"],
            dtype=trt_type_name(match["dtype"].strip()),
            shape=tuple(int(size) for size in match["shape"].split(",") if size.strip()),
        )
        for match in _TENSOR.finditer(text)
    )
