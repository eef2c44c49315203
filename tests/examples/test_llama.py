import pytest
import torch

from calib.network.tracing import trace_program
from examples.llama import Llama, Sizes, rotated

SIZES = Sizes(vocabulary=300, width=32, hidden=48, depth=2, heads=4, key_heads=2, context=32)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Llama(SIZES).eval().requires_grad_(False)


def test_the_sizes_are_those_of_the_layers(model):
    block = model.layers[0]
    assert len(model.layers) == SIZES.depth
    assert [tuple(layer.weight.shape) for layer in (block.wq, block.wk, block.w1, block.w2)] == [
        (32, 32),
        (16, 32),
        (48, 32),
        (32, 48),
    ]
    assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, SIZES.vocabulary)


@pytest.mark.slow
def test_a_trace_computes_what_the_network_does(model):
    tokens = torch.randint(SIZES.vocabulary, (2, 16))
    program, _ = trace_program(model, (tokens,), free=False)
    assert torch.allclose(program.module()(tokens), model(tokens), atol=1e-5)


def test_what_comes_later_changes_nothing(model):
    tokens = torch.arange(24)[None]
    later = tokens.clone()
    later[0, 12:] += 100
    one, other = model(tokens), model(later)
    assert torch.allclose(one[:, :12], other[:, :12], atol=1e-5)
    assert not torch.allclose(one[:, 12:], other[:, 12:], atol=1e-5)


def test_places_turn_pairs_and_products_know_the_distance_alone():
    angles = torch.outer(torch.arange(6), torch.tensor([1.0, 0.1]))
    q, k = torch.rand(4), torch.rand(4)
    turned = [rotated(x.expand(1, 1, 6, 4), angles.cos(), angles.sin())[0, 0] for x in (q, k)]
    products = turned[0] @ turned[1].T
    assert torch.allclose(products[2, 1], products[5, 4])
    assert products[0, 0].item() == pytest.approx((q @ k).item(), rel=1e-5)
    assert not torch.allclose(products[2, 1], products[1, 2])
