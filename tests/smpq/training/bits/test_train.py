"""The training that finds bits: within its budget, the same again, and the same after a kill."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from calib.errors import UserError
from smpq.solve.allocate import Impossible
from smpq.training.bits.settings import BsqSettings
from smpq.training.settings import FineTuneSettings
from tests.smpq.training.bits import trainable
from tests.smpq.training.bits.finders import FINDERS, HOW, planes, same
from tests.smpq.training.bits.trainable import Stopped, kept, subject
from tests.smpq.tunable import Task, batch_of


@pytest.fixture(scope="module", params=FINDERS)
def whole(request, tmp_path_factory):
    return FINDERS[request.param], FINDERS[request.param](kept(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    "limits", [{"avg_bits": 2.0}, {"avg_bits": 3.7}, {"size": 900.0}, {"avg_bits": 4.0, "bops": 2e5}]
)
@pytest.mark.parametrize("find", FINDERS.values(), ids=FINDERS)
def test_every_ceiling_holds_and_little_is_left_over(find, limits, tmp_path):
    given = subject(**limits)
    found = find(kept(tmp_path), how=FineTuneSettings(epochs=1), **limits)
    shares = [ceiling.model.total(found.policy) / ceiling.limit for ceiling in given.ceilings]
    assert max(shares) <= 1 + 1e-9
    for name, row in given.space.formats.items():
        assert found.policy[name] in row
        finer = [
            chosen for chosen in row if not chosen.is_float and chosen.weight_bits > found.policy[name].weight_bits
        ]
        if finer:
            wider = found.policy.with_format(name, min(finer, key=lambda chosen: chosen.weight_bits))
            assert any(c.model.total(wider) > c.limit for c in given.ceilings), f"{name} could have had {finer[0]}"
    assert found.weights.policy == found.policy.key()
    assert {path: weight.type for path, weight in found.weights.weights.items()} == {
        unit.path: found.policy[group.name].weight for group in given.space.groups for unit in group.units
    }


@pytest.mark.parametrize("find", FINDERS.values(), ids=FINDERS)
def test_a_layer_in_float_and_one_with_a_single_width_keep_them(find, tmp_path, monkeypatch):
    monkeypatch.setattr(trainable, "space_of", partial(trainable.space_of, head="fp32", stem="w8a8"))
    found = find(kept(tmp_path), how=FineTuneSettings(epochs=2), avg_bits=7.0)
    assert (str(found.policy["head"]), str(found.policy["stem"])) == ("fp32", "w8a8")
    assert "head" not in found.weights.weights
    assert found.weights.weights["stem"].bits == 8
    assert min(chosen.weight_bits for chosen in found.policy.formats.values()) < 8


def test_gradients_that_the_caller_has_switched_off_are_on_while_it_trains(whole, tmp_path):
    find, wanted = whole
    with torch.no_grad():
        same(find(kept(tmp_path)), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_after_a_kill(seed, whole, tmp_path):
    find, wanted = whole
    chance = random.Random(seed)
    stop = chance.randrange(4), chance.randrange(6)
    with pytest.raises(KeyboardInterrupt):
        find(kept(tmp_path), Stopped(*stop))
    assert kept(tmp_path).is_file() == (stop[0] > 0), "the state is written after each epoch"
    assert same(find(kept(tmp_path)), wanted)


def test_another_seed_is_another_training(whole, tmp_path):
    find, wanted = whole
    other = find(kept(tmp_path), how=FineTuneSettings(epochs=4, learning_rate=0.01, step_learning_rate=0.001, seed=1))
    assert not same(other, wanted)


def test_training_goes_on_with_the_bits_that_were_found(whole):
    _, found = whole
    assert found.weights.after.value > -1.0
    losses = [row["loss"] for row in found.weights.history]
    assert losses[-1] < max(losses)


@pytest.mark.parametrize(
    "other",
    [
        {"avg_bits": 4.0},
        {"formats": "w2a8,w8a8"},
        {"settings": BsqSettings(search=0.5)},
        {"how": FineTuneSettings(epochs=4, learning_rate=0.02)},
    ],
)
def test_a_state_of_another_training_is_not_taken(other, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        planes(kept(tmp_path), Stopped(2, 3))
    with pytest.raises(UserError, match="is of a training with another budget, other formats, settings or data"):
        planes(kept(tmp_path), **other)


def test_a_state_of_other_training_data_is_not_taken(tmp_path):
    class Others(Task):
        def training(self, epoch):
            yield from (batch_of(9000 + 100 * epoch + index) for index in range(self.passes))

    with pytest.raises(KeyboardInterrupt):
        planes(kept(tmp_path), Stopped(2, 3))
    with pytest.raises(UserError, match="is of a training with another budget, other formats, settings or data"):
        planes(kept(tmp_path), Others())


def test_a_state_that_was_changed(tmp_path):
    from calib.files.tensor_file import read_tensor_file, write_tensor_file
    from smpq.training.bits.state import TrainingFile

    with pytest.raises(KeyboardInterrupt):
        planes(kept(tmp_path), Stopped(2, 3))
    record, tensors = read_tensor_file(kept(tmp_path), TrainingFile, "delete it")
    name = next(name for name in tensors if name.startswith("graph/"))
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != name}, "it has other tensors than the model"),
        ({**tensors, name: tensors[name][:0]}, "does not fit the model"),
        ({**tensors, "other": torch.zeros(1)}, "tensors that do not belong there"),
    ):
        write_tensor_file(kept(tmp_path), record, changed)
        with pytest.raises(UserError, match=message):
            planes(kept(tmp_path))
    kept(tmp_path).write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        planes(kept(tmp_path))


def test_what_cannot_be_met_or_trained(tmp_path):
    with pytest.raises(Impossible, match="no choice of widths that can be trained meets the budget"):
        planes(kept(tmp_path), avg_bits=0.5)
    with pytest.raises(UserError, match="diverged"):
        planes(kept(tmp_path), how=FineTuneSettings(epochs=4, learning_rate=1e9))
    one_by_one = Task()
    one_by_one.training = lambda epoch: [batch_of(epoch, 1)] * 3  # type: ignore[method-assign]
    with pytest.raises(UserError, match="a BatchNorm needs two samples or more"):
        planes(kept(tmp_path), one_by_one)
    untrained = Task()
    untrained.training = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="no training data"):
        planes(kept(tmp_path), untrained)


def test_bfloat16_is_another_way_to_the_same_budget(tmp_path):
    found = planes(kept(tmp_path), how=replace(HOW, bfloat16=True))
    assert next(iter(found.weights.parameters.values())).dtype == torch.float32
    assert found.weights.settings["bfloat16"] is True
