"""The run's float ONNX model: exported once, compared with the user's module, and shown to be unchanged whenever it is
used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import torch
from torch.utils import _pytree as pytree

from calib.errors import UserError, first_line
from calib.network.agreement import Agreement
from calib.network.faithful import run_eager
from calib.network.graph import TracedModel
from deploy.files.engine import FloatModelFile
from deploy.lowering.export import FINGERPRINT, export_float
from deploy.lowering.onnx_files import load_model, sha256

if TYPE_CHECKING:  # which exports the float model itself
    from deploy.run.workspace import Workspace

FLOAT_MODEL = "model.float.onnx"
_FEW = 8


def export_float_model(workspace: Workspace) -> Path:
    """Return the run's `model.float.onnx`; it is exported unless it is there.

    1. A new file is compared with the user's module on one and on eight samples: onnxruntime computes it as it is
       written, without optimisation, and may differ by as much as `Agreement` allows.
    2. A file that is there must be the one that was exported, byte by byte, and is compared once in every command. One
       without a record, as after a kill, is exported again.

    Raises UserError when a file has changed, or when the new one computes something else than the module.
    """
    run, path = workspace.run, workspace.run.file(FLOAT_MODEL)
    record = run.find(FloatModelFile)
    if path.is_file() and record is not None:
        if (path, sha256(path)) in workspace.compared:
            return path
        _check_known(workspace, path, record)
        try:
            _compare(workspace, path)  # both files may have been changed together
        except UserError as error:
            raise UserError(
                f"{path} was changed, and its record with it: delete it, it is exported again ({error})"
            ) from error
        workspace.compared.add((path, record.sha256))
        return path
    with workspace.progress.step("export to ONNX"):
        export_float(workspace.traced, workspace.space.units, path, workspace.fingerprint)
        try:
            _compare(workspace, path)
        except UserError:
            path.unlink()
            raise
    record = FloatModelFile(fingerprint=workspace.fingerprint, sha256=sha256(path))
    workspace.compared.add((path, record.sha256))
    run.write(record)
    return path


def _check_known(workspace: Workspace, path: Path, record: FloatModelFile) -> None:
    if record.fingerprint != workspace.fingerprint:
        raise UserError(f"{path} was exported from another model or other data: delete it, it is exported again")
    carried = load_model(path).metadata_props.get(FINGERPRINT)
    if record.sha256 != sha256(path) or carried != workspace.fingerprint:
        raise UserError(
            f"{path} is not the file that was exported, it has changed since: delete it, it is exported again"
        )


def _compare(workspace: Workspace, path: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = first_line(error)
        if workspace.backend.in_onnxruntime:
            raise UserError(f"onnxruntime does not load the exported model: {reason}") from error
        workspace.progress.warn(
            f"the exported model was not compared with PyTorch, because onnxruntime does not load it: {reason}"
        )
        return
    inputs, traced = workspace.batches[0].inputs, workspace.traced
    agreement = Agreement(run_eager(workspace.original, inputs, "calibration batch 0"))
    for count in sorted({1, min(_FEW, len(inputs[0]))}) if traced.dynamic_batch else (len(inputs[0]),):
        samples = [tensor[:count].contiguous() for tensor in inputs]
        expected = run_eager(workspace.original, samples, f"a batch of {count}")
        feeds = {
            name: np.ascontiguousarray(tensor.numpy()) for name, tensor in zip(traced.inputs, samples, strict=True)
        }
        try:
            found = as_output(traced, session.run(None, feeds))
        except Exception as error:
            raise UserError(
                f"the exported model does not run with a batch of {count}, which the PyTorch model does: "
                f"{first_line(error)}"
            ) from error
        problem = agreement.difference(found, expected)
        if problem is not None:
            raise UserError(
                f"the exported model does not compute what the PyTorch model does with a batch of {count}: {problem}. "
                "The exporter of "
                "torch is wrong about one of its operators: write it in another way"
            )


def as_output(traced: TracedModel, arrays: Sequence[Any]) -> Any:
    """Return what `forward` returns, given the outputs of an ONNX file: None where the model gives None."""
    values = iter(arrays)
    leaves: Any = traced.output.args[0]
    flat = [None if leaf is None else torch.from_numpy(np.asarray(next(values))) for leaf in leaves]
    return pytree.tree_unflatten(flat, traced.out_spec)
