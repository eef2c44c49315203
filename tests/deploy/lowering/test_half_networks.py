"""Odd networks lowered to half precision give what they give in PyTorch, or are refused before the work."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.errors import UserError
from deploy.lowering.export import ORIGINS
from tests.deploy.half_networks import OF_TOKENS, SAMPLES, TOKENS, WIDTH, Net, NetOfOne, lowered

LEAST = torch.finfo(torch.float32).min


def _linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def _tokens() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(SAMPLES, TOKENS, WIDTH)


def _with_zeros() -> torch.Tensor:
    x = _tokens()
    x[0, 0] = x[1] = 0
    return x


def _rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _timesteps(self, x, t):
    half = WIDTH // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return self.b(x + self.a(torch.cat([angles.cos(), angles.sin()], -1)))


def _rotary(self, x):
    """The positions are a Range of floats whose end is free."""
    q, positions = self.a(x), torch.arange(x.shape[1], dtype=x.dtype)
    angles = positions[:, None] * 10_000 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    first, second = q[..., ::2], q[..., 1::2]
    turned = [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()]
    return self.b(torch.stack(turned, -1).flatten(2))


def _masked(mask):
    def run(self, x, kept):
        scores = self.a(x) @ x.transpose(1, 2)
        return self.b(mask(scores, kept[:, None]).softmax(-1) @ x)

    return run


def _heads(self, x):
    """Two heads, in the axis of the samples."""
    q, k, v = (
        layer.reshape(len(x), TOKENS, 2, 8).transpose(1, 2).reshape(len(x) * 2, TOKENS, 8)
        for layer in (self.a(x), self.b(x), x)
    )
    return F.scaled_dot_product_attention(q, k, v).reshape(len(x), 2, TOKENS, 8).transpose(1, 2).flatten(2)


_STEPS = torch.tensor([1, 10, 100, 50])
_KEPT = torch.arange(TOKENS) < torch.tensor([6, 3, 4, 1])[:, None]
SOUND = {
    "a vector of zeros is normalised": (lambda self, x: self.b(F.normalize(x, dim=-1) + 0.1 * self.a(x)), _with_zeros),
    "a cosine": (lambda self, x: self.b(x * F.cosine_similarity(x, self.a(x), dim=-1)[..., None]), _with_zeros),
    "an entropy": (lambda self, x: self.b(-(p := F.relu(self.a(x))) * torch.log(p + 1e-10)), _tokens),
    "RMSNorm by hand": (lambda self, x: self.b(_rms(self.a(x))), _tokens),
    "LayerNorm of large numbers": (lambda self, x: self.b(F.layer_norm(1000 * self.a(x), (WIDTH,))), _tokens),
    "time steps": (_timesteps, lambda: (_tokens()[:, 0], _STEPS)),
    "a mask that is a product": (
        _masked(lambda scores, kept: scores + (1.0 - kept.float()) * LEAST),
        lambda: (_tokens(), _KEPT),
    ),
    "a mask that is filled in": (
        _masked(lambda scores, kept: scores.masked_fill(~kept, -1e9)),
        lambda: (_tokens(), _KEPT),
    ),
    "a mask of infinity": (
        _masked(lambda scores, kept: torch.where(kept, scores, torch.tensor(-math.inf))),
        lambda: (_tokens(), _KEPT),
    ),
    "heads among the samples": (_heads, _tokens),
    "a number that the exporter leaves in a node": (
        lambda self, x: self.b(torch.zeros_like(x).scatter(-1, self.a(x).argmax(-1, keepdim=True), 1.0)),
        _tokens,
    ),
    "a transformer with a mask": (
        lambda self, x, kept: self.layer(x, src_key_padding_mask=~kept),
        lambda: (_tokens(), _KEPT),
    ),
    "several outputs": (lambda self, x: {"a": self.a(x), "b": (self.b(x).half(), x.argmax(-1)), "c": x > 0}, _tokens),
}


@pytest.mark.parametrize("name", SOUND)
def test_half_precision_gives_what_the_network_gives(name, tmp_path):
    torch.manual_seed(0)
    run, make = SOUND[name]
    inputs = made if isinstance(made := make(), tuple) else (made,)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    assert lowered(Net(run, a=_linear(), b=_linear(), layer=layer), inputs, tmp_path).error() < 0.03


@pytest.mark.parametrize("target", ["tensorrt", "ort-cuda"])
def test_an_operator_without_a_type_for_half_stays_float32_between_casts(target, tmp_path):
    torch.manual_seed(0)
    made = lowered(NetOfOne(_rotary, a=_linear(), b=_linear()), (_tokens(),), tmp_path, target, sizes=OF_TOKENS)
    assert made.error() < 0.03
    assert made.error(_tokens()[:, :3]) < 0.03
    assert "Range" in {node.op_type for node in onnx.load(made.path).graph.node}


def test_an_output_in_half_precision_stays_so(tmp_path):
    made = lowered(Net(lambda self, x: self.a(x).half(), a=_linear()), (_tokens(),), tmp_path)
    assert made.run(_tokens())[0].dtype == np.float16


def _scores(self, x, kept):
    """Scores beyond half precision, masked, beside others with the same mask."""
    mask = ((1.0 - kept.float()) * LEAST)[:, None]
    large = 2000 * self.a(x) @ (20 * x).transpose(1, 2)
    small = (self.a(x) @ x.transpose(1, 2) + mask).softmax(-1)
    filled = (large.masked_fill(~kept[:, None], -1e9) / 1e4).softmax(-1)
    return self.b((((large + mask) / 1e4).softmax(-1) + small + filled) @ x)


def _spread(x):
    variance, mean = torch.var_mean(x, -1, keepdim=True)
    return (x - mean) * variance.rsqrt()


def _cosine(self, x):
    return self.b(x / 1000 * F.cosine_similarity(x, 1000 * self.a(x / 1000), dim=-1)[..., None])


def _thousands():
    return 1000 * _tokens()


def _millions():
    return 1e6 * _tokens()


KEPT = {
    "RMSNorm of large numbers": (lambda self, x: self.b(_rms(1000 * self.a(x))), _tokens, "pow, mean"),
    "the same by its module": (lambda self, x: self.b(F.rms_norm(x, (WIDTH,))), _thousands, "rms_norm"),
    "a norm": (lambda self, x: self.b(F.normalize(x, dim=-1)), _thousands, "linalg_vector_norm"),
    "a deviation": (lambda self, x: self.b(x / x.std(-1, keepdim=True)), _thousands, "std"),
    "a variance, of two results": (lambda self, x: self.b(_spread(x)), _thousands, "var_mean, getitem, rsqrt"),
    "a cosine": (_cosine, _thousands, "cosine_similarity"),
    "an input": (lambda self, x: self.b((x - 5e5) / 1e6), _millions, "sub, div"),
    "an input in halves": (
        lambda self, x: self.b(torch.cat([part / 1e6 for part in x.chunk(2, -1)], -1)),
        _millions,
        "split, getitem, div",
    ),
    "a maximum": (lambda self, x: self.b(x / x.abs().max(-1, keepdim=True)[0]), _millions, "abs, max, getitem and 1"),
    "outputs": (lambda self, x: (self.a(x / 1e6), x * 2, x > 0, x.argmax(-1)), _millions, "div, mul, gt and 1 more"),
    "integers": (
        lambda self, x, t: self.b(x + (t.float()[:, None] * 1000 * torch.ones(WIDTH)).sin()),
        lambda: (_tokens()[:, 0], _STEPS),
        "mul, sin",
    ),
    "scores": (_scores, lambda: (_tokens(), _KEPT), "mul, slice, unsqueeze and 5 more"),
    "a factor": (lambda self, x: self.b(self.a(x) * 1e-3 * 1e6), _tokens, "mul"),
    "a divisor": (lambda self, x: self.b(self.a(x) / 1e6 * 100), _tokens, "div"),
}


@pytest.mark.parametrize(("target", "text", "limit"), [("tensorrt", "fp16", 0.005), ("ort-cuda", "w8a8", 0.08)])
@pytest.mark.parametrize("name", KEPT)
def test_what_half_precision_does_not_hold_between_layers_stays_float32(name, target, text, limit, tmp_path, capsys):
    torch.manual_seed(0)
    run, make, said = KEPT[name]
    inputs = made if isinstance(made := make(), tuple) else (made,)
    made = lowered(Net(run, a=_linear(), b=_linear()), inputs, tmp_path, target, text)
    assert made.error() < limit
    assert f"kept in float32, since half precision does not hold the values: {said}" in capsys.readouterr().out


def test_no_cast_stands_between_a_quantised_skip_and_its_sum_in_float32(tmp_path):
    """The sum is beyond half precision, what it adds is not."""
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(8, 8, 1) for name in "abc"}
    net = Net(lambda self, x: self.c((self.a(40_000 * x) + self.b(40_000 * x)) / 1e5), **layers)
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.copy_(torch.eye(8)[..., None, None])
    made = lowered(net, (1 + torch.rand(2, 8, 4, 4) / 2,), tmp_path, "tensorrt", "w8a8")
    graph = onnx.load(made.path).graph
    cast = {name for node in graph.node if node.op_type == "Cast" for name in node.input}
    assert not cast & {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert made.error() < 0.3


def test_a_file_that_does_not_say_what_its_nodes_are_for_is_refused(tmp_path):
    run, make, _ = KEPT["a deviation"]
    made = lowered(Net(run, b=_linear()), (make(),), tmp_path)
    exported = onnx.load(tmp_path / "model.float.onnx")
    kept = [entry for entry in exported.metadata_props if entry.key != ORIGINS]
    del exported.metadata_props[:]
    exported.metadata_props.extend(kept)
    onnx.save(exported, tmp_path / "model.float.onnx")
    with pytest.raises(UserError, match="does not say what its nodes are for"):
        made.lower_again()


REFUSED = {
    "an input of a layer": (lambda self, x: self.b(x), _millions, "inputs_0 around b reaches"),
    "the same, moved": (lambda self, x: self.b(x.flatten(1, 1)), _millions, "around b reaches"),
    "the result of a layer": (lambda self, x: self.b(self.a(6e4 * x.sign()) / 1e5), _tokens, "linear around a reaches"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_half_precision_does_not_hold_around_layers_is_refused_by_name(name, tmp_path):
    torch.manual_seed(0)
    run, make, message = REFUSED[name]
    with pytest.raises(UserError, match=f"{re.escape(message)}.*half precision holds"):
        lowered(Net(run, a=_linear(), b=_linear()), (make(),), tmp_path)
