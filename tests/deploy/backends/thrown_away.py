"""A back end that lives in the tests alone: nothing in the package knows of it. Its table is the JSON file beside
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.backends.base import Backend, BuildFailed, Built, OpenEngine, backend
from deploy.backends.onnxruntime import build_engine, load_engine, session_settings
from deploy.files.engine import BuiltRow
from deploy.lowering.lower import Lowering
from deploy.targets.families import add_family

add_family(Path(__file__).with_suffix(".json"))


@backend("thrown-away")
class ThrownAway(Backend):
    """An engine of ONNX Runtime, in a file of another kind."""

    suffix = "away"

    @property
    def lowering(self) -> Lowering:
        return Lowering(half=False, integer_matmul=True, copied_from_bits=8, integer_biases=True)

    def build(self, model: Path, engine: Path, sm: str = "", cache: Path | None = None) -> Built | BuildFailed:
        record = build_engine(model, engine)
        if isinstance(record, BuildFailed):
            return record
        row = BuiltRow(
            sha256=record.sha256,
            size_bytes=record.size_bytes,
            build_seconds=record.build_seconds,
            versions={"away": "1"},
        )
        return Built(row)

    def open(self, engines: Mapping[str, Path], inputs: Sequence[str], batch: int, threads: int) -> OpenEngine | str:
        (engine,) = engines.values()
        return OpenEngine(load_engine(engine, threads=threads).run, None)

    def settings(self, model: Path) -> dict[str, Any]:
        return session_settings(model)
