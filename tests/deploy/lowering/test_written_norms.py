"""A BatchNorm that could not be folded keeps the exporter from changing the weight of the layer before it."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.network.fold import trace_folded
from calib.network.units import find_units
from deploy.lowering.export import export_float
from tests.calib.network.test_fold import BiasReadElsewhere, CalledUnderAutocast, SharedNorm, with_statistics
from tests.calib.network.test_norms import OwnWeight


class ComputedGain(nn.Module):
    """A norm whose gain is computed, behind layers of several kinds."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.gain = layer, nn.Parameter(torch.rand(4) + 0.5)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.layer(x), self.mean, self.variance, self.gain.exp(), None)


NETWORKS = {
    "a shared norm": (SharedNorm, (2, 5, 5)),
    "a bias that is read elsewhere": (BiasReadElsewhere, (2, 5, 5)),
    "under autocast": (CalledUnderAutocast, (2, 5, 5)),
    "nowhere to put the bias": (lambda: OwnWeight(affine=False), (2, 5, 5)),
    "conv1d": (lambda: ComputedGain(nn.Conv1d(2, 4, 3)), (2, 5)),
    "conv3d": (lambda: ComputedGain(nn.Conv3d(2, 4, 3)), (2, 5, 5, 5)),
    "linear": (lambda: ComputedGain(nn.Linear(6, 4)), (6,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_holds_the_weight_of_each_layer_and_computes_the_same(name, tmp_path):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = with_statistics(make()), torch.randn(2, *shape)
    traced, _ = trace_folded(model, (x,))
    units, _ = find_units(traced)
    path = tmp_path / "model.onnx"
    export_float(traced, units, path)
    graph = onnx.load(path).graph
    assert {unit.path for unit in units} <= {node.name for node in graph.node}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(output, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
