"""An attention of tensors without heads is exported like one of a single head."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import UserError
from calib.network.fold import trace_folded
from calib.network.units import find_units
from deploy.lowering.export import export_float

TOKENS, WIDTH = 6, 8
OPTIONS = {
    "plain": lambda x: {},
    "causal": lambda x: {"is_causal": True},
    "own scale": lambda x: {"scale": 0.3},
    "a mask of tokens": lambda x: {"attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()},
    "a mask of each sample": lambda x: {"attn_mask": x[..., :TOKENS]},
}


class Single(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.three, self.out, self.options = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), OPTIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(*self.three(x).chunk(3, -1), **self.options(x)))


@pytest.mark.parametrize("name", OPTIONS)
def test_any_batch_gives_what_torch_gives(name, tmp_path):
    torch.manual_seed(0)
    model, x = Single(name).eval(), torch.randn(4, TOKENS, WIDTH)
    traced, _ = trace_folded(model, (x,))
    units, _ = find_units(traced)
    path = tmp_path / "model.onnx"
    export_float(traced, units, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    attended = next(node.name for node in traced.graph.nodes if "scaled_dot_product" in str(node.target))
    for count in (1, 4):
        (output,) = session.run(None, {session.get_inputs()[0].name: x[:count].numpy()})
        np.testing.assert_allclose(output, model(x[:count]).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert attended.encode() in path.read_bytes(), "the result of the attention keeps its name"


def test_of_a_rank_that_torch_cannot_export_its_own_reason_is_told(tmp_path):
    class Blocks(Single):
        def forward(self, x: Tensor) -> Tensor:
            three = self.three(x).unflatten(1, (2, 1, -1)).chunk(3, -1)
            return self.out(F.scaled_dot_product_attention(*three))

    traced, _ = trace_folded(Blocks("plain").eval(), (torch.randn(4, TOKENS, WIDTH),))
    units, _ = find_units(traced)
    with pytest.raises(UserError, match=r"scaled_dot_product_attention.* opset 21: only 4D query, key, and value are"):
        export_float(traced, units, tmp_path / "model.onnx")
