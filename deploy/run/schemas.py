"""JSON Schemas of the files of a run: `python -m deploy.run.schemas docs/schemas` writes them for the documentation."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from calib.files.storage import FileRecord, write_bytes
from deploy.backends.onnxruntime.record import EnginesFile
from deploy.run.registry import RUN_FILES


def schemas() -> Mapping[str, dict[str, Any]]:
    """Return the schema of each JSON file of a run, by file name."""
    kinds: tuple[type[FileRecord], ...] = (*RUN_FILES, EnginesFile)
    return {kind.NAME: _schema(kind) for kind in kinds}


def schema_files() -> Mapping[str, str]:
    """Return what the documentation holds: name -> text, one file for each schema."""
    return {
        f"{name.removesuffix('.json')}.schema.json": json.dumps(schema, indent=1) + "\n"
        for name, schema in schemas().items()
    }


def _schema(kind: type[FileRecord]) -> dict[str, Any]:
    (found,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for component in components.values():  # a docstring is wrapped for its file
        paragraphs = component.get("description", "").split("\n\n")
        component["description"] = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    components[kind.__name__]["properties"]["schema"] = {"const": kind.VERSION}
    components[kind.__name__]["required"] = ["schema", *components[kind.__name__].get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind.NAME, **found, "$defs": components}


def main(directory: str) -> None:
    """Write the schemas into a directory."""
    for name, text in schema_files().items():
        write_bytes(Path(directory) / name, text.encode())


if __name__ == "__main__":
    main(sys.argv[1])
