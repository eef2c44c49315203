import numpy as np
import pytest

from smpq.scoring.shrinkage import shrink


def moves(spread: float, noise: float, walks: int, seed: int):
    """Thirty moves whose marginal in context is about 1.5 times what they do alone, `spread` apart, seen through
    `noise`.
    """
    generator = np.random.default_rng(seed)
    alone = -np.exp(generator.normal(-3.0, 1.0, 30))
    truth = alone * (1.5 + spread * generator.normal(size=30))
    samples = truth[:, None] + np.abs(alone)[:, None] * noise * generator.normal(size=(30, walks))
    names = [f"g{i}" for i in range(30)]
    return (
        dict(zip(names, alone, strict=True)),
        {n: tuple(row) for n, row in zip(names, samples, strict=True)},
        dict(zip(names, truth, strict=True)),
    )


def error(found, truth, scale):
    return np.mean([((found[name] - truth[name]) / scale[name]) ** 2 for name in truth])


@pytest.mark.parametrize(
    ("spread", "noise", "walks", "gain"), [(0.1, 1.0, 4, 3.0), (0.3, 1.0, 4, 1.5), (0.5, 0.3, 4, 0.99)]
)
def test_closer_to_the_truth_than_the_means_where_walks_are_few_and_no_worse_elsewhere(spread, noise, walks, gain):
    raw = shrunken = 0.0
    for seed in range(20):
        alone, samples, truth = moves(spread, noise, walks, seed)
        raw += error({name: np.mean(row) for name, row in samples.items()}, truth, alone)
        shrunken += error(shrink(alone, samples), truth, alone)
    assert shrunken * gain < raw


def test_many_walks_leave_nothing_to_shrink():
    alone, samples, _ = moves(0.5, 0.1, 400, 0)
    for name, value in shrink(alone, samples).items():
        assert value == pytest.approx(np.mean(samples[name]), rel=1e-2)


def test_equal_ratios_and_zeros_are_no_trouble():
    found = shrink({"a": -1.0, "b": -2.0, "c": 0.0}, {"a": (-2.0, -2.0), "b": (-4.0, -4.0), "c": (0.0, 0.0)})
    assert found["a"] == pytest.approx(-2.0)
    assert found["b"] == pytest.approx(-4.0)
    nothing = shrink({"a": 0.0, "b": 0.0}, {"a": (0.0, 0.0), "b": (0.0, 0.0)})
    assert set(nothing.values()) == {0.0}
