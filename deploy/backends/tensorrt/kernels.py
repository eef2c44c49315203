"""Which kernels a plan consists of, as the builder's verbose log tells; the engine inspector tells the same where there
is a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.runner.trt_layers import nodes_from_metadata, trt_type_name

# One line per kernel. A name is free text and may hold commas and brackets, so the line is split at its keys, not at
# its commas.
_LINE = re.compile(
    r"Name: (?P<name>.*), LayerType: (?P<kind>\S+), Inputs: \[(?P<inputs>.*)\], Constants: \[(?P<constants>.*)\]"
    r", Outputs: \[(?P<outputs>.*)\], TacticName: .*, Metadata: (?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d, ]*)\],.*?Datatype: (?P<dtype>[^,}]+)")


@dataclass(frozen=True)
class KernelTensor:
    """A tensor of a kernel: its name in the engine, its type in the builder's words (Half, Float, Int8, Int4, ...), its
    shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_matrix(self) -> bool:
        """Whether at least two dimensions are longer than 1, as in a weight and unlike in a scale or bias per
        channel.
        """
        return sum(size > 1 for size in self.shape) > 1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KernelTensor:
        """Read a tensor of a layer as `deploy.runner.trt_layers` describes it."""
        return cls(data["name"], data["dtype"], tuple(data["shape"]))


@dataclass(frozen=True)
class PlanKernel:
    """One kernel of the engine, fused from any number of ONNX nodes.

    1. `kind` in the builder's words: `correlation` is a convolution, `gemm` and `runtime_fusion` are matrix products,
       `kgen` is generated code: pointwise work and, for a single row of input, matrix-vector products too.
    2. `onnx_nodes` are the names of the nodes it came from. One node may come back in several kernels.
    """

    kind: str
    inputs: tuple[KernelTensor, ...]
    constants: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    onnx_nodes: tuple[str, ...]
    name: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanKernel:
        """Read a layer as `deploy.runner.trt_layers` describes it."""
        tensors = {
            key: tuple(KernelTensor.from_json(item) for item in data[key]) for key in ("inputs", "constants", "outputs")
        }
        return cls(kind=data["kind"], name=data["name"], onnx_nodes=tuple(data["onnx_nodes"]), **tensors)


def kernels_from_log(messages: Iterable[str]) -> tuple[PlanKernel, ...]:
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


def _kernel_from_line(line: str) -> PlanKernel:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"unknown kernel description in the builder's log: {line!r}")
    return PlanKernel(
        kind=match["kind"],
        name=match["name"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"]),
        outputs=_tensors(match["outputs"]),
        onnx_nodes=nodes_from_metadata(match["metadata"]),
    )


def _tensors(text: str) -> tuple[KernelTensor, ...]:
    return tuple(
        KernelTensor(
            match["name"],
            trt_type_name(match["dtype"].strip()),
            tuple(int(size) for size in match["shape"].split(",") if size.strip()),
        )
        for match in _TENSOR.finditer(text)
    )
