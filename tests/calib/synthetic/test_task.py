"""A task without its samples."""

from __future__ import annotations

import pickle

import torch

from calib.synthetic.task import data_free
from calib.task import Batch, SampleTask, SetTask, TrainableTask
from tests.trainable_task import task as make


def test_nothing_but_the_evaluation_data_can_be_reached():
    original, batches = make(), [Batch((torch.zeros(2, 3),), None)]
    assert isinstance(original, TrainableTask)
    found = data_free(original, batches)
    assert isinstance(found, SampleTask)
    assert not isinstance(found, (TrainableTask, SetTask))
    assert not hasattr(found, "selection")
    assert found.calibration() == batches
    assert (found.name, found.metric_name) == (original.name, original.metric_name)
    assert found.evaluation.__self__ is original
    assert pickle.dumps(found), "workers get a copy"
