"""Files are written whole or not at all, also those with their weights in a second file."""

from __future__ import annotations

import numpy as np
import pytest

from calib.errors import UserError
from deploy.lowering.onnx_files import copy_model, data_path, load_model, save_model, sha256, size_bytes
from tests.deploy.networks import mlp, run_plain


def test_a_missing_and_a_truncated_file_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "no.onnx")
    (tmp_path / "half.onnx").write_bytes(mlp().path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as an ONNX model"):
        load_model(tmp_path / "half.onnx")


def test_an_illegal_model_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.onnx"
    save_model(mlp().model(), path)
    before = sha256(path)
    broken = mlp().model()
    next(iter(broken.graph)).op_type = "NoSuchOperator"
    with pytest.raises(ValueError, match="not legal ONNX"):
        save_model(broken, path)
    assert sha256(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_large_weights_go_to_a_file_beside_and_can_be_copied(tmp_path):
    exported = mlp()
    path, copy = tmp_path / "model.onnx", tmp_path / "engines" / "copy.onnx"
    save_model(exported.model(), path, largest_single_file=0)
    assert data_path(path).is_file()
    assert size_bytes(path) > path.stat().st_size
    copy_model(path, copy)
    for file in (path, data_path(path)):
        file.unlink()
    np.testing.assert_array_equal(run_plain(copy, exported.batch), run_plain(exported.path, exported.batch))
