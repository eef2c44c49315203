"""Training happens on the device that was asked for, comes to the same there, and leaves its results on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

from smpq.supernet.network import Supernet
from smpq.supernet.settings import SupernetSettings
from smpq.supernet.state import SupernetState
from smpq.supernet.training import train
from smpq.training.finetune import finetune
from smpq.training.placing import batch_on, graph_on
from smpq.training.settings import FineTuneSettings
from tests.smpq import supernets
from tests.smpq.training.bits.finders import FINDERS, same
from tests.smpq.training.bits.trainable import Stopped
from tests.smpq.training.elsewhere import NAME, Device, Elsewhere
from tests.smpq.tunable import Task, batch_of, tunable

SETTINGS = FineTuneSettings(steps=6, learning_rate=0.01, step_learning_rate=0.001)
SUPERNET = SupernetSettings(epochs=2, steps=3, walks=2, samples=32, complexity=0.1, distillation=1.0)


@pytest.fixture
def given():
    return tunable(rounding="nearest")


def test_the_device_has_the_rules_of_another_one():
    x = torch.arange(4.0)
    with Device() as device:
        y = x.to(NAME)
        assert isinstance(y, Elsewhere)
        assert y.device.type == NAME
        assert (y * 2 + 1).cpu().tolist() == [1, 3, 5, 7]
        assert float(y.sum()) == 6
        with pytest.raises(RuntimeError, match="same device"):
            y + x
        y.requires_grad_()
        (y * y).sum().backward()
        assert y.grad.device.type == NAME
        assert y.grad.cpu().tolist() == [0, 2, 4, 6]
    assert device.calls > 5


@pytest.mark.parametrize("value", ["kl", "loss", "metric"])
def test_finetuning_elsewhere_is_finetuning(given, value):
    subject = given.subject("w2a8", stem="w3a8", plain="fp16", head="w4a4")
    settings = replace(SETTINGS, value=value)
    here = finetune(subject, given.batches, settings)
    with Device() as device:
        there = finetune(subject, given.batches, settings, device=NAME)
        assert device.calls > 1000, "the work is done there"
    assert here.history == there.history
    assert (here.before, here.after, here.quantizers) == (there.before, there.after, there.quantizers)
    tensors = [
        tensor
        for tensor in pytree.tree_leaves((there.parameters, [vars(weight) for weight in there.weights.values()]))
        if isinstance(tensor, torch.Tensor)
    ]
    assert {type(tensor) for tensor in tensors} == {torch.Tensor}
    for name, tensor in here.parameters.items():
        assert tensor.equal(there.parameters[name]), name
    for path, weight in here.weights.items():
        assert weight.values.equal(there.weights[path].values)
        assert weight.scale.equal(there.weights[path].scale)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # here it is none
@pytest.mark.parametrize("find", FINDERS.values(), ids=FINDERS)
def test_bits_are_found_elsewhere_as_here_and_go_on_there(find, tmp_path):
    how = replace(SETTINGS, steps=None, epochs=2)
    here = find(tmp_path / "here", Task(3), how=how)
    with pytest.raises(KeyboardInterrupt), Device():
        find(tmp_path / "there", Stopped(1, 1, 3), how=how, device=NAME)
    with Device() as device:
        there = find(tmp_path / "there", Task(3), how=how, device=NAME)
        assert device.calls > 500, "the work is done there"
    assert same(here, there)


def test_the_metric_of_the_user_sees_the_cpu(given):
    class Careful(Task):
        def metric(self, output, target):
            assert {output.device.type, target.device.type} == {"cpu"}
            return super().metric(output, target)

    with Device():
        finetune(given.subject("w4a8", Careful()), given.batches, replace(SETTINGS, steps=1), device=NAME)


def test_nothing_is_left_on_another_device_than_the_cpu_by_default(given):
    with Device() as device:
        finetune(given.subject("w4a8"), given.batches, replace(SETTINGS, steps=1))
    assert device.calls == 0


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # here it is none
def test_a_supernet_elsewhere_is_a_supernet(tmp_path):
    subject = supernets.subject()
    batches = supernets.Task().calibration()
    here = train(Supernet(subject), batches, SUPERNET)
    kept = []
    with Device() as device:
        there = train(Supernet(subject, NAME), batches, SUPERNET, keep=kept.append)
        assert device.calls > 1000
        again = Supernet(subject, NAME)
        resumed = train(again, batches, SUPERNET, kept[0])
        loaded = Supernet(subject, NAME)
        there.save(tmp_path / "supernet.safetensors")
        SupernetState.load(tmp_path / "supernet.safetensors", loaded).restore(loaded)
        assert loaded.shares() == again.shares()
    for other in (there, resumed):
        assert {type(tensor) for tensor in other.tensors.values()} == {torch.Tensor}
        assert list(other.tensors) == list(here.tensors)
        for name, tensor in here.tensors.items():
            assert tensor.equal(other.tensors[name]), name
        assert [row["loss"] for row in other.history] == [row["loss"] for row in here.history]
        for value, found in here.contributions.items():
            assert (found.marginals == other.contributions[value].marginals).all()


def test_a_graph_and_a_batch_move_as_a_whole(given):
    batch = batch_of(1)
    assert graph_on(given.traced, "cpu") is given.traced
    with Device():
        moved, there = graph_on(given.traced, NAME), batch_on(batch, NAME)
        assert {tensor.device.type for tensor in (*moved.state.values(), *there.inputs, there.target)} == {NAME}
        assert moved.run(there.inputs).cpu().equal(given.traced.run(batch.inputs))
    assert {tensor.device.type for tensor in given.traced.state.values()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_finetuning_on_a_gpu(given):
    subject = given.subject("w4a8")
    here, there, again = (
        finetune(subject, given.batches, SETTINGS, device=device) for device in ("cpu", "cuda", "cuda")
    )
    assert there.after.value == pytest.approx(here.after.value, rel=0.05, abs=1e-3)
    assert there.history == again.history
