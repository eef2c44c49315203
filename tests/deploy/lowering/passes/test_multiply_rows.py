"""MatMul on the rows of a matrix: which ones, the names, the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.fix_batch import fix_batch
from deploy.lowering.passes.multiply_rows import multiply_rows
from deploy.lowering.passes.quantize_weights import quantize_weights
from deploy.lowering.passes.split_gemm import split_gemm
from tests.deploy.networks import Exported, export, nodes, run_plain


class _Sequence(nn.Module):
    """Linear layers on three dimensions, one of them without a bias as the output, and one on two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.plain = nn.Linear(32, 32, bias=False)
        self.head = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.plain(torch.relu(self.first(x)))
        return x, self.head(x.mean(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    torch.manual_seed(0)
    return export(_Sequence(), torch.randn(6, 5, 32), tmp_path_factory.mktemp("rows"))


def _passed(exported: Exported, path, *texts: str, batch: int | None = None) -> int:
    plan, _ = exported.plan(exported.formats(*texts), "tensorrt-rtx")
    model = exported.model()
    if batch is not None:
        fix_batch(model, batch)
    split_gemm(model, plan, exported.units)
    quantize_weights(model, plan, exported.units)
    save_model(model, path.with_name("before.onnx"))
    changed = multiply_rows(model, plan, exported.units)
    save_model(model, path)
    return changed


@pytest.mark.parametrize("batch", [None, 6])
def test_blocks_multiply_rows_and_the_results_keep_their_names(exported, tmp_path, batch):
    path = tmp_path / "model.onnx"
    assert _passed(exported, path, "w4a16b16", batch=batch) == 2
    graph = nodes(path)
    assert [graph[f"{name}/rows"].op_type for name in ("first", "plain")] == ["Reshape", "Reshape"]
    assert list(graph["plain/Reshape"].output) == [exported.units[1].calls[0]]
    assert "head/rows" not in graph
    before = run_plain(path.with_name("before.onnx"), exported.batch, disable_quant_qdq="1")
    np.testing.assert_array_equal(run_plain(path, exported.batch, disable_quant_qdq="1"), before)


@pytest.mark.parametrize("text", ["w4a16", "w8a8", "fp16"])
def test_other_formats_are_left_alone(exported, tmp_path, text):
    assert _passed(exported, tmp_path / "model.onnx", text) == 0
