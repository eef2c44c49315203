"""Plain ONNX for trtexec: the file builds as it is, and the command says what it needs."""

from __future__ import annotations

import shlex

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.sizes import sizes_of
from deploy.backends.tensorrt import Built, build_plan, check_units
from deploy.lowering.onnx_files import sha256
from deploy.stages.trtexec import export_for_trtexec
from deploy.targets.target import target_from_name
from tests.deploy.backends.builds import needs_rtx
from tests.deploy.measured_plans import write_product_of
from tests.deploy.networks import export, mlp, residual


def _export(exported, directory, *texts, target="tensorrt", **options):
    formats = exported.formats(*texts)
    plan, _ = exported.plan(formats, target)
    return formats, export_for_trtexec(
        exported.path, plan, exported.units, target_from_name(target), directory, **options
    )


def test_a_fixed_batch_needs_no_shapes(tmp_path):
    _, export = _export(residual(), tmp_path, "w8a8", batch_sizes=(4, 4, 4))
    (command,) = export.build
    assert shlex.split(command) == [
        "trtexec",
        f"--onnx={tmp_path}/model.qdq.onnx",
        f"--saveEngine={tmp_path}/model.qdq.engine",
        "--stronglyTyped",
        "--avgTiming=8",
        "--profilingVerbosity=detailed",
    ]
    assert export.measured is None
    shape = onnx.load(str(export.path)).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in shape] == [4, 3, 8, 8]
    assert export.report.changes["quantize_tensors"] > 0


def test_a_free_batch_needs_three_shapes(tmp_path):
    _, export = _export(residual(), tmp_path, "w8a8", batch_sizes=(1, 8, 32))
    assert shlex.split(export.build[0])[-3:] == [
        "--minShapes=x:1x3x8x8",
        "--optShapes=x:8x3x8x8",
        "--maxShapes=x:32x3x8x8",
    ]
    assert onnx.load(str(export.path)).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_other_free_axes_are_among_the_shapes(tmp_path):
    sizes = sizes_of([((3, *size),) for size in ((8, 12), (16, 8))], ["input"])
    exported = export(nn.Sequential(nn.Conv2d(3, 16, 3)), torch.randn(4, 3, 16, 8), tmp_path, sizes)
    shape = onnx.load(str(exported.path)).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in shape] == ["batch", 3, "input_2", "input_3"]
    _, made = _export(exported, tmp_path / "out", "w8a8", batch_sizes=(4, 4, 4))
    assert shlex.split(made.build[0])[-3:] == [
        "--minShapes=input:4x3x8x8",
        "--optShapes=input:4x3x16x8",
        "--maxShapes=input:4x3x16x12",
    ]
    session = ort.InferenceSession(str(exported.path))
    x = torch.randn(3, 3, 9, 11)
    (found,) = session.run(None, {"input": x.numpy()})
    np.testing.assert_allclose(found, exported.traced.run([x]).numpy(), atol=1e-5)


def test_paths_with_spaces_are_quoted(tmp_path):
    directory = tmp_path / "my run"
    _, export = _export(mlp(), directory, "w8a8")
    assert f"--onnx={directory}/model.qdq.onnx" in shlex.split(export.build[0])
    assert "'" in export.build[0]


def test_the_plan_that_was_measured_is_handed_over_with_its_kernel_times(tmp_path):
    """trtexec would time the kernels once more, and may choose others."""
    _, first = _export(mlp(), tmp_path, "w8a8")
    write_product_of(tmp_path / "engine.tensorrt", sha256(first.path)[:16])
    _, export = _export(mlp(), tmp_path, "w8a8", product=tmp_path / "engine.tensorrt")
    assert f"--timingCacheFile={tmp_path}/engine.tensorrt/timing.cache" in shlex.split(export.build[0])
    assert shlex.split(export.measured) == ["trtexec", f"--loadEngine={tmp_path}/engine.tensorrt/engine.plan"]
    _, other = _export(mlp(), tmp_path, "fp16", product=tmp_path / "engine.tensorrt")  # another model has another plan
    assert other.measured is None
    assert "timingCacheFile" not in other.build[0]


def test_rtx_has_a_tool_of_its_own(tmp_path):
    _, export = _export(mlp(), tmp_path, "w8a8", target="tensorrt-rtx", batch_sizes=(1, 4, 8))
    assert len(export.build) == 3
    assert shlex.split(export.build[1]) == [
        "tensorrt_rtx",
        f"--onnx={tmp_path}/model.qdq.onnx",
        f"--saveEngine={tmp_path}/model.qdq.sm89.engine",
        "--computeCapabilities=89",
        "--profilingVerbosity=detailed",
        "--minShapes=input:1x1x8x8",
        "--optShapes=input:4x1x8x8",
        "--maxShapes=input:8x1x8x8",
    ]
    write_product_of(tmp_path / "product", sha256(export.path)[:16], "tensorrt-rtx")
    _, again = _export(
        mlp(), tmp_path, "w8a8", target="tensorrt-rtx", batch_sizes=(1, 4, 8), product=tmp_path / "product"
    )
    assert shlex.split(again.measured) == ["tensorrt_rtx", f"--loadEngine={tmp_path}/product/engine.plan"]


@needs_rtx
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 8)])
def test_the_file_builds_with_the_shapes_of_the_command(tmp_path, sizes):
    formats, export = _export(residual(), tmp_path, "w8a8", "fp16", target="tensorrt-rtx", batch_sizes=sizes)
    record = build_plan(export.path, tmp_path / "plan", "tensorrt-rtx", "sm86", batch_sizes=sizes)
    assert isinstance(record, Built), record
    assert all(check.agrees for check in check_units(record.layers, formats))


def test_a_plan_for_another_runtime_is_refused(tmp_path):
    with pytest.raises(UserError, match="this run is for ort-cpu"):
        _export(mlp(), tmp_path, "w8a8", target="ort-cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [(0, 1, 1), (4, 2, 8), (1, 8, 4)])
def test_batch_sizes_out_of_order(tmp_path, sizes):
    with pytest.raises(UserError, match="smallest, the usual and the largest"):
        _export(mlp(), tmp_path, "w8a8", batch_sizes=sizes)


def test_a_model_of_one_batch_size_has_no_profile(tmp_path):
    class OneSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.reshape(2, 4))

    exported = export(OneSize(), torch.randn(2, 4), tmp_path)
    with pytest.raises(UserError, match=r"batches of 2 .* give that batch"):
        _export(exported, tmp_path / "out", "w8a8", batch_sizes=(1, 2, 4))
    assert not (tmp_path / "out").exists()
    assert _export(exported, tmp_path / "out", "w8a8", batch_sizes=(2, 2, 2))[1].path.is_file()
