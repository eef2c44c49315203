import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from calib.errors import UserError
from calib.files.cache import cache_directory, cache_path, trained


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMPQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Trainer:
    """Counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model):
        self.calls += 1
        with torch.no_grad():
            model.weight.fill_(self.calls)


def test_the_second_time_comes_from_the_cache():
    train = Trainer()
    first = trained("t", nn.Linear(2, 2), {"v": 1}, train)
    second = trained("t", nn.Linear(2, 2), {"v": 1}, train)
    assert train.calls == 1
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert not second.training


def test_another_recipe_is_another_file():
    train = Trainer()
    trained("t", nn.Linear(2, 2), {"v": 1}, train)
    trained("t", nn.Linear(2, 2), {"v": 2}, train)
    assert train.calls == 2
    assert cache_path("t", {"a": 1, "b": 2}) == cache_path("t", {"b": 2, "a": 1})


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_damaged_cache_is_replaced_and_said(damage, capsys):
    train = Trainer()
    trained("t", nn.Linear(2, 2), {"v": 1}, train)
    path = cache_path("t", {"v": 1})
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    capsys.readouterr()
    trained("t", nn.Linear(2, 2), {"v": 1}, train)
    assert train.calls == 2
    captured = capsys.readouterr()
    assert "cannot be used" in captured.err
    assert captured.out == ""
    trained("t", nn.Linear(2, 2), {"v": 1}, train)
    assert train.calls == 2


def test_a_cache_of_other_shapes_is_replaced():
    train = Trainer()
    trained("t", nn.Linear(2, 2), {"v": 1}, train)
    assert trained("t", nn.Linear(3, 2), {"v": 1}, train).weight.shape == (2, 3)
    assert train.calls == 2


def test_training_that_fails_leaves_no_file(cache):
    def fail(model):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        trained("t", nn.Linear(2, 2), {}, fail)
    assert not cache.exists() or not list(cache.iterdir())


def test_of_several_at_the_same_time_one_trains(cache):
    """Threads stand for processes: the lock is that of an open file, and each opens its own."""
    train = Trainer()

    def train_slowly(model):
        time.sleep(0.5)
        train(model)

    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(lambda _: trained("t", nn.Linear(2, 2), {}, train_slowly), range(3)))
    assert train.calls == 1
    assert all(torch.equal(model.weight, torch.ones(2, 2)) for model in models)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"], "no lock is left"


def test_the_thread_count_is_put_back():
    seen = []
    before = torch.get_num_threads()
    trained("t", nn.Linear(2, 2), {}, lambda model: seen.append(torch.get_num_threads()), threads=1)
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_a_directory_that_cannot_be_made_is_a_user_error(cache):
    cache.write_text("a file is in the way")
    with pytest.raises(UserError, match="SMPQ_CACHE"):
        trained("t", nn.Linear(2, 2), {}, Trainer())


def test_the_directory_follows_the_environment(cache, monkeypatch):
    assert cache_directory() == cache
    monkeypatch.delenv("SMPQ_CACHE")
    assert cache_directory().parts[-2:] == (".cache", "smpq")
