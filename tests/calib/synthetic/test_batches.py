"""Synthetic samples: by seed, near to what BatchNorm layers keep, and noise where nothing is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.sizes import sizes_from_text
from calib.synthetic.batches import BATCH, mismatch, steps_of, synthesize
from calib.synthetic.kinds import InputKind, kinds_from_example, kinds_from_shapes

IMAGES = (InputKind((2, 4, 4), torch.float32),)


class Normed(nn.Module):
    """Two layers, each with a BatchNorm that has seen data of the given mean and standard deviation."""

    def __init__(self, mean: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.bn2 = nn.Linear(4, 3), nn.BatchNorm1d(3)
        seen = torch.randn(256, 2, 1, 1).expand(-1, -1, 4, 4) + 0.3 * torch.randn(256, 2, 4, 4)
        with torch.no_grad():
            self.train()
            self.bn1.momentum = self.bn2.momentum = 1.0
            self(mean + spread * seen)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.first(x))).mean((2, 3))
        return self.bn2(self.second(x))


def test_they_come_near_to_what_the_norms_keep():
    model = Normed()
    before = copy.deepcopy(model.state_dict())
    made = synthesize(model, IMAGES, 64, seed=3)
    assert [tuple(batch.inputs[0].shape) for batch in made.batches] == [(BATCH, 2, 4, 4)]
    assert all(batch.target is None and not batch.inputs[0].requires_grad for batch in made.batches)
    assert made.norms == 2
    assert made.mismatch < made.noise_mismatch / 5
    with torch.no_grad():
        hidden = model.first(made.batches[0].inputs[0])
        read = [
            (model.bn1, hidden),
            (model.bn2, model.second(torch.relu(model.bn1(hidden)).mean((2, 3)))),
        ]
    assert float(mismatch(read)) == pytest.approx(made.mismatch, rel=1e-4)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mismatch_is_zero_for_the_data_that_were_seen():
    norm = nn.BatchNorm1d(3, momentum=1.0)
    seen = torch.randn(50, 3) * 2 + 1
    norm.train()(seen)
    assert float(mismatch([(norm, seen)])) < 1e-3
    assert float(mismatch([(norm, seen + 2)])) == pytest.approx(float((4 / norm.running_var).mean()), rel=0.05)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("calib.synthetic.batches.STEPS", 2)


def test_by_seed(short):
    one, again, other = (synthesize(Normed(), IMAGES, 8, seed).batches[0].inputs[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_pixels_of_another_scale_are_found():
    made = synthesize(Normed(spread=100.0), IMAGES, 64, seed=0)
    assert made.batches[0].inputs[0].std() > 30
    assert made.mismatch < 0.2


def test_without_a_norm_it_is_noise():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.LayerNorm(8), nn.BatchNorm1d(8, track_running_stats=False))
    made = synthesize(model.eval(), IMAGES, 64, seed=5)
    noise = torch.randn((64, 2, 4, 4), generator=torch.Generator().manual_seed(5))
    assert torch.equal(made.batches[0].inputs[0], noise)
    assert (made.norms, made.noise_mismatch, made.mismatch) == (0, 0.0, 0.0)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(10, 4), nn.BatchNorm1d(4)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.norm((self.embedding(tokens) * mask[..., None]).mean(1))


def test_integers_are_drawn_from_their_range():
    kinds = kinds_from_example((torch.tensor([[3, 9, 4]]), torch.tensor([[True, False, True]])))
    made = synthesize(Tokens().eval(), kinds, 64, seed=0)
    tokens, mask = made.batches[0].inputs
    assert set(tokens.unique().tolist()) == {3, 4, 5, 6, 7, 8, 9}
    assert tokens.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert 0 < mask.float().mean() < 1
    assert made.norms == 0, "there is no gradient to integers"


class OneByOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 16).sum(1)[None]


def test_a_model_that_takes_one_sample_gets_one():
    made = synthesize(OneByOne(), IMAGES, 3, seed=0)
    assert (made.batch, len(made.batches)) == (1, 3)
    with pytest.raises(UserError, match=r"the model fails on synthetic inputs \(3 samples\)"):
        synthesize(nn.Linear(5, 2), IMAGES, 3, seed=0)


class InFours(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(4, 2, 4, 4) if self.bn1.momentum == 0.5 else x)


def test_a_model_of_one_size_gets_batches_of_that(short):
    model = InFours()
    model.bn1.momentum = 0.5
    made = synthesize(model, IMAGES, 6, 0, batch=4)
    assert (made.batch, len(made.batches), made.norms) == (4, 2, 2)
    with pytest.raises(UserError, match=r"the model fails on synthetic inputs \(6 samples\)"):
        synthesize(model, IMAGES, 6, seed=0)


def test_progress_is_told(short):
    for samples, model in ((70, Normed()), (70, Alone())):
        steps = []
        synthesize(model, IMAGES, samples, 0, lambda steps=steps: steps.append(1))
        assert 0 < len(steps) <= steps_of(samples) == 2 * 2
    assert len(steps) == 2 * 2


class Alone(Normed):
    """Takes one sample at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.training else x.reshape(1, 2, 4, 4))


def test_noise_that_cannot_be_improved_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr("calib.synthetic.batches._RATE", 1e6)
    made = synthesize(Normed(), IMAGES, 64, seed=0)
    assert made.norms == 2
    assert made.mismatch == made.noise_mismatch > 0


def test_noise_has_the_moments_of_floats_that_vary():
    (kind,) = kinds_from_example(torch.tensor([[1.0, 3.0, 5.0, 3.0]]))
    assert kind == InputKind((4,), torch.float32, 3.0, pytest.approx(2**0.5))
    drawn = kind.draw(20_000, torch.Generator().manual_seed(0), 10.0)
    assert float(drawn.mean()) == pytest.approx(3.0, abs=0.3)
    assert float(drawn.std()) == pytest.approx(10 * 2**0.5, rel=0.05)
    assert kinds_from_example(torch.full((1, 4), 7.0)) == (InputKind((4,), torch.float32),)


@pytest.mark.parametrize("example", [None, (), 3.0, (torch.zeros(2), "x"), torch.tensor(1.0), torch.zeros(0, 2),
                                     torch.tensor([[float("nan")]]),
                                     torch.zeros(1, 2, dtype=torch.complex64)])  # fmt: skip
def test_examples_that_say_nothing(example):
    with pytest.raises(UserError, match=r"example_inputs\(\) must return"):
        kinds_from_example(example)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.ones(1, 2).to_sparse(), r"example_inputs\(\) must return .* dense"),
        (torch.ones(1, 2).bfloat16(), r"a tensor of example_inputs\(\) is bfloat16.* tensor.float\(\)"),
    ],
)
def test_examples_that_no_engine_takes(example, message):
    with pytest.raises(UserError, match=message):
        kinds_from_example(example)


def test_kinds_of_stated_sizes():
    stated = [sizes_from_text("mask=1x7"), sizes_from_text("x=1x3x8x8:1x3x4x4:1x3x16x16")]
    assert kinds_from_shapes(stated, lambda count: ["x", "mask", "third"][:count]) == (
        InputKind((3, 8, 8), torch.float32),
        InputKind((7,), torch.float32),
    )
    with pytest.raises(UserError, match=r"--shape mask=.*: the first inputs of the model are x, y"):
        kinds_from_shapes(stated, lambda count: ["x", "y"][:count])
