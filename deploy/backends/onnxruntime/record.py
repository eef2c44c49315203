"""`engine.json`: how each ONNX Runtime engine of a directory was built and has to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from calib.errors import UserError
from calib.files.storage import Amount, Count, FileRecord, Record, read_record, write_record

ENGINE_FILE = "engine.json"
_SESSION_KEYS = frozenset(
    {"session.disable_quant_qdq", "session.qdq_matmulnbits_accuracy_level", "session.x64quantprecision"}
)
_OPTIMIZERS = frozenset({"WeightBiasQuantization", "MatMulAddFusion"})
_PROVIDER_OPTIONS: Mapping[str, frozenset[str]] = {
    "CPUExecutionProvider": frozenset(),
    "CUDAExecutionProvider": frozenset(),
    "TensorrtExecutionProvider": frozenset({"trt_fp16_enable", "trt_int8_enable"}),
}
_REPAIR = "delete it and build the engines again"


Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class TensorRow(Record, frozen=True, kw_only=True):
    """An input or output: its shape in numbers or names of free dimensions, its dtype as ONNX Runtime writes it
    (`tensor(float)`).
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


class OrtEngineRecord(Record, frozen=True, kw_only=True):
    """One engine: session settings, what it was built from and with, inputs and outputs.

    `providers` are names of execution providers, or pairs of a name and its options. `build_seconds` is the time to
    optimise the graph and to create the session, which every load takes again.
    """

    sha256: str
    size_bytes: Count
    providers: tuple[str | tuple[str, dict[str, str]], ...]
    graph_optimization_level: Literal["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
    disabled_optimizers: tuple[str, ...]
    session_config: dict[str, str]
    intra_op_num_threads: Threads
    inter_op_num_threads: Threads
    versions: dict[str, str]
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    build_seconds: Amount

    def __post_init__(self) -> None:
        # a file from somebody else must not make ONNX Runtime load or write other files
        if not _SESSION_KEYS.issuperset(self.session_config):
            raise ValueError(
                f"session_config has keys that no engine of smpq has: "
                f"{sorted(set(self.session_config) - _SESSION_KEYS)}"
            )
        if not _OPTIMIZERS.issuperset(self.disabled_optimizers):
            raise ValueError("disabled_optimizers names one that no engine of smpq leaves out")
        for entry in self.providers:
            name, options = (entry, {}) if isinstance(entry, str) else entry
            if name not in _PROVIDER_OPTIONS or not _PROVIDER_OPTIONS[name].issuperset(options):
                raise ValueError(f"providers names {name!r} with options that no engine of smpq has")
        names = [entry if isinstance(entry, str) else entry[0] for entry in self.providers]
        if len(set(names)) < len(names):
            raise ValueError("providers names one twice")


class EnginesFile(FileRecord, frozen=True, kw_only=True):
    """`engine.json`: the engines by file name."""

    NAME = ENGINE_FILE
    MADE_BY = "smpq build"

    engines: dict[str, OrtEngineRecord]


def find_record(engine: Path) -> OrtEngineRecord:
    """Return the entry of `engine` in the `engine.json` beside it; UserError when either is missing or damaged."""
    if not engine.is_file():
        raise UserError(f"there is no engine {engine}: build it first")
    file = engine.with_name(ENGINE_FILE)
    if not file.is_file():
        raise UserError(
            f"{file} is missing: without it nobody knows how {engine.name} has to be loaded; build the engine again"
        )
    engines = read_record(file, EnginesFile, _REPAIR).engines
    if engine.name not in engines:
        raise UserError(f"{file} has no entry for {engine.name}: build the engine again")
    return engines[engine.name]


def keep_record(engine: Path, record: OrtEngineRecord) -> None:
    """Add or replace the entry of `engine`; the other engines of the directory keep theirs."""
    file = engine.with_name(ENGINE_FILE)
    engines = read_record(file, EnginesFile, _REPAIR).engines if file.is_file() else {}
    write_record(file, EnginesFile(engines=dict(sorted({**engines, engine.name: record}.items()))))
