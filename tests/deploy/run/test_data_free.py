"""`--data-free`: no sample of the task is read, and everything says so."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from calib.errors import UserError
from deploy.files.report import ReportFile
from deploy.files.synthetic import SyntheticFile
from deploy.run.directory import Run
from deploy.run.settings import Settings
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from tests import tiny_task
from tests.commands import assert_matches, copy_of, done, refused

SHAPE = "DATA_FREE_SHAPE"


class Normed(tiny_task.Net):
    """With a BatchNorm that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return super().forward(x + 0 * self.norm(self.first(x)).mean())


class Guarded(tiny_task.Tiny):
    """A task whose samples must not be read."""

    name = "guarded"

    def model(self):
        return tiny_task.network(Normed).eval()

    def example_inputs(self):
        return torch.zeros(1, 1, *map(int, os.environ.get(SHAPE, "6x6").split("x")))

    def calibration(self):
        raise AssertionError("a sample was asked for")

    def selection(self):
        raise AssertionError("a sample was asked for")

    def training(self, epoch):
        raise AssertionError("a sample was asked for")

    def evaluation(self):
        return None


class Evaluated(Guarded):
    def evaluation(self):
        return tiny_task.batches(2)


class Silent(Guarded):
    """Does not say what its inputs look like."""

    example_inputs = None


HERE = "tests.deploy.run.test_data_free"
OPTIONS = (
    "--target",
    "simulate",
    "--formats",
    "w4a8,w8a8,fp32",
    "--rounding",
    "nearest",
    "--samples",
    16,
    "--data-free",
)


def asked(task, out, *options):
    return ("--task", f"{HERE}:{task}", *OPTIONS, "--out", out, *options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("data_free") / "run"
    result = done("run", *asked("Guarded", path, "--method", "ohq", "--budget", "avg_bits=6"))
    return path, result


def test_nothing_is_read_or_verified_and_all_say_so(run):
    path, result = run
    assert "data-free: no sample of the task calibrated it, 16 synthetic samples did, fitted" in result.err
    assert "warning: accuracy is not verified: the task gives no evaluation data" in result.err
    assert "Not verified: the task gives no evaluation data." in result.out
    found = Run(path)
    assert found.settings().data_free
    assert not found.has("verify.json")
    record = found.read(SyntheticFile)
    assert (record.samples, record.norms, record.source, record.evaluation) == (16, 1, "example_inputs()", False)
    assert found.read(ReportFile).synthetic == record
    assert "no sample of the task calibrated it" in (path / "report.html").read_text().replace("\n", " ")
    assert "gives no evaluation data (evaluation() returns None)" in refused(
        "verify", path, "--task", f"{HERE}:Guarded"
    )


def test_the_same_command_goes_on_with_the_same_samples(run):
    path, _ = run
    names = ("run.json", "synthetic.json", "synthetic.safetensors", "calibration.json", "scores.json", "policy.json")
    before = {name: (path / name).read_bytes() for name in names}
    done("run", *asked("Guarded", path, "--method", "ohq", "--budget", "avg_bits=6"))
    assert {name: (path / name).read_bytes() for name in names} == before


def test_lost_samples_are_made_again_and_others_are_refused(run, tmp_path, monkeypatch):
    path, _ = run
    settings = Settings(
        f"{HERE}:Guarded", "simulate", formats="w4a8,w8a8,fp32", rounding="nearest", samples=16, data_free=True
    )
    samples = path / "synthetic.safetensors"
    content = samples.read_bytes()
    samples.unlink()
    open_run(path, Progress(), settings).close()
    assert samples.read_bytes() == content, "by seed"
    samples.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="the calibration data changed since"):
        open_run(path, Progress(), settings)
    samples.write_bytes(content)
    monkeypatch.setenv(SHAPE, "8x8")
    with pytest.raises(UserError, match=r"the inputs are not those that .* was made for: use another --out"):
        open_run(path, Progress(), settings)


class Drawn(Guarded):
    """As the documentation writes it."""

    def example_inputs(self):
        return 0.3 + 0.4 * torch.randn(1, 1, 6, 6)


def test_an_example_that_is_drawn_anew_is_the_same_input(tmp_path):
    for _ in range(2):
        done("score", *asked("Drawn", tmp_path / "run", "--method", "random"))


def test_evaluation_data_verify(tmp_path):
    result = done("run", *asked("Evaluated", tmp_path / "run", "--method", "ohq", "--budget", "avg_bits=6"))
    assert Run(tmp_path / "run").has("verify.json")
    assert "not verified" not in result.err


def test_other_methods_and_a_budget_on_the_divergence(tmp_path):
    done("run", *asked("Guarded", tmp_path / "run", "--effort", "fast", "--budget", "kl=10"))
    assert Run(tmp_path / "run").read(ReportFile).limits[0].met


def test_stated_sizes_do_in_place_of_an_example(tmp_path):
    assert_matches("give the task a method example_inputs", refused("score", *asked("Silent", tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    done("score", *asked("Silent", tmp_path / "run", "--shape", "x=1x1x6x6", "--method", "random"))
    assert Run(tmp_path / "run").read(SyntheticFile).source == "--shape"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "drop=0.5"), "drop=0.5 needs labels, which --data-free has none of: give a budget on kl"),
        (("--budget", "avg_bits=6", "--value", "loss"),
         "--value loss needs labels, which --data-free has none of: use kl"),
        (("--budget", "avg_bits=6", "--method", "hawq"),
         "--method hawq needs samples of the task, and --data-free takes"),
        (("--budget", "avg_bits=6", "--method", "smpq"),
         "--method smpq needs samples of the task|fine-tuning needs samples"),
        (("--budget", "avg_bits=6", "--finetune", "1"),
         "fine-tuning needs samples of the task, and --data-free takes none"),
    ],
)  # fmt: skip
def test_what_needs_samples_is_refused(tmp_path, options, message):
    assert_matches(message, refused("run", *asked("Guarded", tmp_path / "run", *options)))


def test_what_needs_no_sample_reconstructs_too(run, tmp_path):
    path, _ = run
    copied = copy_of(path, tmp_path / "run")
    done("reconstruct", copied, "--task", f"{HERE}:Guarded", "--iterations", "5", "--quiet")
    assert (copied / "finetuned.safetensors").is_file()
