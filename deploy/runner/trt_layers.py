"""What the engine inspector tells of each layer of an engine, in the same words for all versions of TensorRT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# TensorRT 10 writes type and memory layout in one text, as in "Row major Int8 format", "Channel major INT8 format where
# channel % 16 == 0" or "Row major linear FP16 format"; the spelling of a type differs from layout to layout.
_TYPE_IN_TEXT = re.compile(
    r"\b(u?int\d+|fp\d+|tf32|bf16|bfloat16|float16|float32|half|float|double|bool)\b", re.IGNORECASE
)
_TYPE_NAMES = {
    "fp16": "Half", "float16": "Half", "half": "Half", "fp32": "Float", "float32": "Float", "float": "Float",
    "bf16": "BFloat16", "bfloat16": "BFloat16", "double": "Double", "bool": "Bool",
}  # fmt: skip
_WRITTEN_BY_WIDTH = {"int": "Int", "uint": "UInt", "fp": "FP", "tf": "TF"}
_ORIGIN_PREFIX = "[ONNX Layer: "
_ORIGIN_SEPARATORS = re.compile("[\x1e\x1f]")


def layers_from_inspector(text: str) -> list[dict[str, Any]]:
    """Return the layers of the JSON that the inspector writes for an engine built with detailed profiling verbosity.

    1. Each has `kind`, `name`, `inputs`, `constants`, `outputs` (of these name, dtype, shape) and `onnx_nodes`, the
       nodes it came from.
    2. Types are in the builder's words: Half, Float, BFloat16, Int8, Int4, ...
    3. Of weights TensorRT 10 tells no shape: they are listed with their number of elements.

    Raises ValueError when the text is something else.
    """
    try:
        return [_layer(entry) for entry in json.loads(text)["Layers"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"unknown description of an engine's layers ({error!r}): {text[:200]!r}") from error


def nodes_from_metadata(text: str) -> tuple[str, ...]:
    """Return the names of the ONNX nodes in a layer's metadata, as in "[ONNX Layer: conv1]", separated by control
    characters.
    """
    origins = _ORIGIN_SEPARATORS.split(text)
    return tuple(origin[len(_ORIGIN_PREFIX) : -1] for origin in origins if origin.startswith(_ORIGIN_PREFIX))


def trt_type_name(text: str) -> str:
    """Return the type that a text of TensorRT names, in the builder's words: Half, Float, BFloat16, Int8, Int4, FP8,
    ...

    Both spellings of each count, in capitals or not. A text that names no type is returned as it is.
    """
    found = _TYPE_IN_TEXT.findall(text)
    if not found:
        return text
    name = found[-1].lower()
    kind = name.rstrip("0123456789")
    return _TYPE_NAMES.get(name) or f"{_WRITTEN_BY_WIDTH[kind]}{name[len(kind) :]}"


def _layer(entry: Mapping[str, Any]) -> dict[str, Any]:
    constants = [_tensor(tensor) for tensor in entry.get("Constants", ())]
    weights = entry.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Count"):
        constants.append({"name": "weights", "dtype": trt_type_name(weights["Type"]), "shape": [weights["Count"]]})
    return {
        "kind": entry["LayerType"],
        "name": entry["Name"],
        "inputs": [_tensor(tensor) for tensor in entry["Inputs"]],
        "constants": constants,
        "outputs": [_tensor(tensor) for tensor in entry["Outputs"]],
        "onnx_nodes": list(nodes_from_metadata(entry.get("Metadata", ""))),
    }


def _tensor(entry: Mapping[str, Any]) -> dict[str, Any]:
    told = entry["Datatype"] if "Datatype" in entry else entry["Format/Datatype"]
    return {"name": entry["Name"], "dtype": trt_type_name(told), "shape": list(entry["Dimensions"])}
