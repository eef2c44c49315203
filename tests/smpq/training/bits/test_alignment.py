"""KAQ's training: one width, aligned activations, and the same after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from calib.files.tensor_file import read_tensor_file
from smpq.solve.allocate import Impossible
from smpq.training.bits.settings import KaqSettings
from smpq.training.bits.state import TrainingFile
from smpq.training.settings import FineTuneSettings
from tests.smpq.training.bits.finders import alignment, same
from tests.smpq.training.bits.trainable import Stopped, kept

SHORT = FineTuneSettings(epochs=1, learning_rate=0.01, step_learning_rate=0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return alignment(kept(tmp_path_factory.mktemp("whole")))


def test_all_layers_have_one_format(whole, tmp_path):
    assert set(map(str, whole.policy.formats.values())) == {"w4a4"}
    found = alignment(kept(tmp_path), how=SHORT, formats="w2a8,w3a8,w4a8", avg_bits=3.9)
    assert set(map(str, found.policy.formats.values())) == {"w3a8"}
    assert found.weights.policy == found.policy.key()
    with pytest.raises(Impossible):
        alignment(kept(tmp_path / "other"), how=SHORT, avg_bits=3.9)


@pytest.mark.parametrize("stop", [(1, 0), (2, 4), (3, 5)])
def test_the_same_after_a_kill(stop, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        alignment(kept(tmp_path), Stopped(*stop))
    _, tensors = read_tensor_file(kept(tmp_path), TrainingFile, "delete it")
    assert any(name.endswith("log_bandwidth") for name in tensors)
    assert same(alignment(kept(tmp_path)), whole)


def test_the_weight_of_the_alignment_changes_what_is_trained(whole, tmp_path):
    without = alignment(kept(tmp_path), settings=KaqSettings(alignment=0.0))
    assert not same(without, whole)
    assert without.weights.before == whole.weights.before


def test_bandwidths_add_nothing_to_the_loss_that_is_shown(tmp_path):
    one, other = (alignment(kept(tmp_path / str(a)), how=SHORT, settings=KaqSettings(alignment=a)) for a in (1e-9, 0.0))
    assert one.weights.history[0]["loss"] == pytest.approx(other.weights.history[0]["loss"], abs=1e-5)


def test_activations_of_8_bits_learn_their_steps_unless_the_settings_say_no(tmp_path):
    learned = alignment(kept(tmp_path), how=SHORT, formats="w4a8").weights.quantizers
    fixed = alignment(
        kept(tmp_path / "fixed"), how=replace(SHORT, learn_activations=False), formats="w4a8"
    ).weights.quantizers
    assert learned.keys() == fixed.keys()
    assert all(learned[key].scale != fixed[key].scale for key in learned)


def test_steps_are_moved_by_the_alignment_alone(tmp_path):
    still = FineTuneSettings(epochs=1, learning_rate=1e-12, step_learning_rate=0.01, labels=1e-12, distillation=0)
    found = alignment(kept(tmp_path), how=still, settings=KaqSettings(alignment=1.0))
    other = alignment(kept(tmp_path / "other"), how=still, settings=KaqSettings(alignment=0.0))
    moved = [
        abs(found.weights.quantizers[key].scale - other.weights.quantizers[key].scale)
        for key in found.weights.quantizers
    ]
    assert max(moved) > 1e-6
    assert torch.tensor(moved).isfinite().all()
