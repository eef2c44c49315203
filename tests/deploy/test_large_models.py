"""Models whose weights are in a file of their own, as ONNX asks of more than two gigabytes."""

from __future__ import annotations

import os
import shutil

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deploy.lowering.onnx_files import copy_model, data_path, save_model, sha256


def _picked(path, index):
    session = ort.InferenceSession(str(path))
    return session.run(None, {"i": np.array([index])})[0]


def _picking(rows):
    """A model that picks one of `rows` numbers, of which the last is 7 and the others are 0."""
    values = np.zeros(rows, np.float32)
    values[-1] = 7
    weight = ir.Value(name="w", shape=ir.Shape([rows]), type=ir.TensorType(ir.DataType.FLOAT))
    weight.const_value = ir.tensor(values, name="w")
    index = ir.Value(name="i", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    node = ir.node("Gather", [weight, index], num_outputs=1)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = (
        "y",
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape([1]),
    )
    graph = ir.Graph([index], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 21}, name="large")
    return ir.Model(graph, ir_version=10)


def test_more_than_two_gigabytes_of_weights(tmp_path):
    if (
        shutil.disk_usage(tmp_path).free < 12 * 2**30
        or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 * 2**30
    ):
        pytest.skip("needs 12 GiB of disk and 8 GiB of memory")
    rows = 2**29 + 2**20
    path = tmp_path / "large.onnx"
    save_model(_picking(rows), path)
    assert data_path(path).stat().st_size >= 4 * rows
    assert path.stat().st_size < 10_000
    copy_model(path, tmp_path / "copy" / "large.onnx")
    assert _picked(tmp_path / "copy" / "large.onnx", rows - 1) == 7
    shutil.rmtree(tmp_path)


def test_weights_in_a_file_of_their_own_are_part_of_a_model(tmp_path):
    path, copy = tmp_path / "model.onnx", tmp_path / "copy" / "model.onnx"
    save_model(_picking(1000), path, largest_single_file=1000)
    assert data_path(path).stat().st_size >= 4000
    copy_model(path, copy)
    assert _picked(copy, 999) == 7
    assert sha256(copy) == sha256(path)
    data_path(copy).write_bytes(bytes(4000))
    assert sha256(copy) != sha256(path)
