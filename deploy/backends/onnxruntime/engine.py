"""Load an engine and run it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from calib.errors import UserError, first_line
from calib.files.storage import in_a_line, plain
from deploy.backends.base import OpenEngine
from deploy.backends.onnxruntime.record import ENGINE_FILE, OrtEngineRecord, TensorRow, find_record
from deploy.lowering.onnx_files import sha256
from deploy.runner import ort as on_device


class OrtEngine:
    """An engine in a session of its own; `load_engine` and `open_lowered` make it."""

    def __init__(self, path: Path, session: ort.InferenceSession) -> None:
        """Keep the session."""
        self.path = path
        self.session = session
        self.input_names = tuple(entry.name for entry in session.get_inputs())

    def opened(self) -> OpenEngine:
        """Return the engine as all back ends have it."""
        size = self.session.get_inputs()[0].shape[0]
        return OpenEngine(self.run, size if isinstance(size, int) else None, any_thread=True)

    def run(self, inputs: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run one batch: arrays in the order of the model's inputs, of their shapes and types; returns all outputs.

        Raises UserError when an array does not fit the engine.
        """
        if len(inputs) != len(self.input_names):
            raise UserError(
                f"{self.path.name} takes {len(self.input_names)} inputs ({', '.join(self.input_names)}), not "
                f"{len(inputs)}"
            )
        feeds = {name: np.ascontiguousarray(array) for name, array in zip(self.input_names, inputs, strict=True)}
        try:
            return list(self.session.run(None, feeds))
        except Exception as error:
            # ONNX Runtime's exceptions share no base class; this one means the data, all others a bug.
            if type(error).__name__ != "InvalidArgument":
                raise
            raise UserError(f"{self.path.name} does not take this input: {first_line(error)}") from error


def load_engine(engine: Path, threads: int | None = None) -> OrtEngine:
    """Load an engine with the settings of its `engine.json`; `threads` replaces the number of threads, as for a quick
    evaluation.

    Raises UserError when a file is missing, damaged, or not the one that was built.
    """
    record = find_record(engine)
    if sha256(engine) != record.sha256:
        raise UserError(
            f"{engine} is not the file that engine.json describes (truncated or replaced?): build the engine again"
        )
    # ONNX Runtime waits for ever where the system has no memory for so many threads
    asked, cores = max(record.intra_op_num_threads, record.inter_op_num_threads), os.cpu_count() or 1
    if asked > cores:
        raise UserError(
            f"{engine.with_name(ENGINE_FILE)} asks for {asked} threads, and this machine has {cores} cores: build the "
            "engine again"
        )
    try:
        session = open_session(engine, record, threads=threads)
    except Exception as error:  # no common base class
        reason = in_a_line(first_line(error))
        raise UserError(
            f"{engine} does not load in onnxruntime {ort.__version__} as {ENGINE_FILE} says: {reason}"
        ) from error
    if (tensors_of(session.get_inputs()), tensors_of(session.get_outputs())) != (record.inputs, record.outputs):
        raise UserError(
            f"{engine} has other inputs or outputs than {engine.with_name(ENGINE_FILE)} says: build the engine again"
        )
    return OrtEngine(engine, session)


def open_lowered(model: Path, settings: Mapping[str, Any], threads: int) -> OrtEngine:
    """Open a lowered file with settings of a session, as a device does that times it. UserError when it does not
    load.
    """
    try:
        session = on_device.open_session(model, settings, threads=threads)
    except Exception as error:  # no common base class
        reason = in_a_line(first_line(error))
        raise UserError(f"{model} does not load in onnxruntime {ort.__version__}: {reason}") from error
    return OrtEngine(model, session)


def tensors_of(entries: Sequence[Any]) -> tuple[TensorRow, ...]:
    """Return inputs or outputs of a session as a record has them."""
    return tuple(TensorRow(name=entry.name, shape=tuple(entry.shape), dtype=entry.type) for entry in entries)


def open_session(
    model: Path, record: OrtEngineRecord, *, optimized: Path | None = None, threads: int | None = None
) -> ort.InferenceSession:
    """Create a session with the settings of a record; `optimized` is where to write the graph that really runs."""
    return on_device.open_session(model, plain(record), optimized=optimized, threads=threads)
