"""What the engine inspector tells of each layer of an engine, in the same words for all versions of TensorRT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# TensorRT 10 writes type and memory layout in one text, as in "Row major Int8 format" or "Row major linear FP16 format".
_TYPE_IN_TEXT = re.compile(r"\b(U?Int\d+|FP\d+|BF16|BFloat16|Half|Float|Bool)\b")
_TYPE_NAMES = {"FP16": "Half", "FP32": "Float", "BF16": "BFloat16"}
_ORIGIN_PREFIX = "[ONNX Layer: "
_ORIGIN_SEPARATORS = re.compile("[\x1e\x1f]")


def layers_from_inspector(text: str) -> list[dict[str, Any]]:
    """Return the layers of the JSON that the inspector writes for an engine built with detailed profiling verbosity.

    1. Each has `kind`, `name`, `inputs`, `constants`, `outputs` (of these name, dtype, shape) and `onnx_nodes`, the nodes it came from.
    2. Types are in the builder's words: Half, Float, BFloat16, Int8, Int4, ...
    3. Of weights TensorRT 10 tells no shape: they are listed with their number of elements.

    Raises ValueError when the text is something else.
    """
    try:
        return [_layer(entry) for entry in json.loads(text)["Layers"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"unknown description of an engine's layers ({error!r}): {text[:200]!r}") from error


def nodes_from_metadata(text: str) -> tuple[str, ...]:
    """Return the names of the ONNX nodes in a layer's metadata, as in "[ONNX Layer: conv1]", separated by control characters."""
    origins = _ORIGIN_SEPARATORS.split(text)
    return tuple(origin[len(_ORIGIN_PREFIX) : -1] for origin in origins if origin.startswith(_ORIGIN_PREFIX))


def _layer(entry: Mapping[str, Any]) -> dict[str, Any]:
    constants = [_tensor(tensor) for tensor in entry.get("Constants", ())]
    weights = entry.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Count"):
        constants.append({"name": "weights", "dtype": _type_name(weights["Type"]), "shape": [weights["Count"]]})
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
    return {"name": entry["Name"], "dtype": _type_name(told), "shape": list(entry["Dimensions"])}


def _type_name(text: str) -> str:
    found = _TYPE_IN_TEXT.findall(text)
    return _TYPE_NAMES.get(found[-1], found[-1]) if found else text
