"""`--torch-device` reaches fine-tuning and the supernet."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from deploy.run.settings import Settings
from deploy.stages.finetuning import FINE_TUNED, finetune
from deploy.stages.run_all import open_run
from deploy.stages.supernet import train_supernet
from deploy.terminal.progress import Progress
from smpq.supernet.settings import SupernetSettings
from smpq.training.finetuned import FineTunedWeights
from smpq.training.settings import FineTuneSettings
from smpq.value.workers.resources import Resources
from tests.commands import done, refused
from tests.smpq.training.elsewhere import NAME, Device

SETTINGS = Settings(
    "tests.smpq.supernets:Task", "simulate", formats="w2a8,w4a4,fp32", samples=32, rounding="nearest", effort="fast"
)
QUICK = FineTuneSettings(steps=3, learning_rate=0.01)


class There(Resources):
    """Resources of a machine that has the device of the tests."""

    @property
    def evaluates_on(self) -> str:
        return NAME


@pytest.fixture
def workspace(tmp_path):
    with open_run(tmp_path / "run", Progress(Console(quiet=True)), SETTINGS) as opened:
        yield replace(opened, resources=There())


def test_finetuning_uses_the_device(workspace):
    policy = workspace.space.uniform(workspace.space.formats["head"][0])
    with Device() as device:
        finetune(workspace, policy, QUICK)
    assert device.calls > 500
    there = FineTunedWeights.load(workspace.run.file(FINE_TUNED))
    finetune(replace(workspace, resources=Resources(device="cpu")), policy, QUICK)
    here = FineTunedWeights.load(workspace.run.file(FINE_TUNED))
    assert here.history == there.history
    assert here.weights.keys() == there.weights.keys()
    assert all(weight.values.equal(there.weights[path].values) for path, weight in here.weights.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_a_cluster_alone_has_is_not_trained_on(tmp_path):
    said = io.StringIO()
    with open_run(tmp_path / "run", Progress(Console(file=said, width=200)), SETTINGS) as opened:
        workspace = replace(opened, resources=Resources(device="cuda", ray="auto"))
        record = finetune(workspace, workspace.space.uniform(workspace.space.formats["head"][0]), QUICK)
    assert record.history[-1]["step"] == 3
    assert "torch sees no cuda here" in said.getvalue()


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # here it is none
def test_the_supernet_uses_the_device(workspace):
    settings = SupernetSettings(epochs=1, steps=2, walks=2, samples=32)
    with Device() as device:
        supernet, there = train_supernet(workspace, settings)
        assert supernet.graph.device == NAME
    assert device.calls > 500
    workspace.run.file("supernet.safetensors").unlink()
    _, here = train_supernet(replace(workspace, resources=Resources(device="cpu")), settings)
    assert all(tensor.equal(there.tensors[name]) for name, tensor in here.tensors.items())


def test_the_commands_take_the_device(tmp_path):
    run = tmp_path / "run"
    options = ["--task", "tests.smpq.supernets:Task", "--target", "simulate", "--formats", "w2a8,w4a4", "--samples",
               "32", "--rounding", "nearest", "--effort", "fast"]  # fmt: skip
    sizes = ["--epochs", "1", "--steps", "2", "--walks", "2", "--held-out", "32", "--gamma", "0"]
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device here" in refused(
            "train-supernet", *options, *sizes, "--out", run, "--torch-device", "cuda"
        )
    done("train-supernet", *options, *sizes, "--out", run, "--torch-device", "cpu")
    done("solve", run, "--budget", "avg_bits=3", "--torch-device", "cpu")
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device here" in refused("finetune", run, "--torch-device", "cuda:1")
    done("finetune", run, "--epochs", "0.5", "--torch-device", "cpu")
