"""Supernets whose layers multiply in bfloat16 while they are trained."""

from dataclasses import replace

import pytest

from smpq.supernet.settings import GameSettings, SupernetSettings
from smpq.supernet.training import train
from tests.smpq.supernets import Task, supernet

SHORT = SupernetSettings(epochs=1, steps=3, walks=3, samples=32, gamma=0.0, game=GameSettings(("loss",)))


@pytest.mark.parametrize("paths", [False, True])
def test_it_is_for_the_training_alone(paths):
    usual, found = (
        train(supernet(), Task().calibration(), replace(SHORT, paths=paths, bfloat16=bfloat16))
        for bfloat16 in (False, True)
    )
    assert found.history[0]["loss"] != usual.history[0]["loss"]
    assert found.history[0]["loss"] == pytest.approx(usual.history[0]["loss"], rel=0.1)
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == {
        name: tensor.dtype for name, tensor in usual.tensors.items()
    }
