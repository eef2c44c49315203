"""Weights that are tuned behind the search: what they lose, and what they were trained on."""

from __future__ import annotations

import pytest
import torch

from calib.errors import UserError
from deploy import optimize
from smpq.training.settings import FineTuneSettings
from tests import tiny_task
from tests.deploy.python.test_optimize import FASTER, right


@pytest.mark.slow
def test_a_drop_is_that_of_the_weights_that_were_trained(tmp_path):
    asked = {**FASTER, "budget": "drop=45", "formats": "w2a8,fp32", "out": tmp_path / "run", "verbose": False}
    data, ruinous = tiny_task.batches(1), FineTuneSettings(epochs=2, learning_rate=30.0, labels=0.0)

    def optimized(**more):
        result = optimize(tiny_task.network(), data, tiny_task.batches(2), right, selection=data, **asked, **more)
        (limit,) = result.report.limits
        return result, limit

    before, limit = optimized()
    assert (before.met, limit.met) == (True, True)
    after, limit = optimized(training=lambda epoch: tiny_task.batches(10 + epoch), finetune=ruinous)
    fall = 100 * (1 - after.accuracy["engine"].mean)
    assert fall > 45, "or nothing was ruined"
    assert (after.met, limit.met) == (False, False)
    assert limit.reached > 45
    again, limit = optimized()
    assert (again.met, limit.met) == (False, False), "the run has the weights still"


def test_training_on_what_calibrates_is_told(tmp_path, capsys):
    """All samples of the first batch: some of them may be there by chance, where calibration is a part of them."""
    data, others = tiny_task.batches(1), tiny_task.batches(10)
    mixed = [(torch.cat([data[0][0], others[0][0]]), torch.cat([data[0][1], others[0][1]]))]
    (tmp_path / "file").touch()
    for training, told in ((data, True), ([(data[0][0].flip(0), data[0][1])], True), (mixed, False), (others, False)):
        with pytest.raises(UserError, match="is a file"):
            optimize(
                tiny_task.network(), data, tiny_task.batches(2), right, training=training, finetune=1,
                out=tmp_path / "file", **FASTER,
            )  # fmt: skip
        said = " ".join(capsys.readouterr().err.split())
        assert ("all samples of the first training batch are in calibration" in said) == told


@pytest.mark.slow
def test_other_training_data_train_anew(tmp_path):
    asked = {**FASTER, "formats": "w4a8,fp32", "out": tmp_path / "run", "verbose": False, "finetune": 1}

    def weights(seed):
        data = tiny_task.batches(1)
        training = [tiny_task.batches(seed)]
        optimize(
            tiny_task.network(), data, tiny_task.batches(2), right, training=lambda epoch: training[epoch], **asked
        )
        return (tmp_path / "run" / "finetuned.safetensors").read_bytes()

    first = weights(10)
    assert weights(10) == first
    assert weights(11) != first
