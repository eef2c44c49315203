"""What a run takes over from a task."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from calib.errors import UserError
from deploy.stages.run_all import _ask_device, open_run
from deploy.terminal.progress import Progress
from tests.commands import copy_of, done
from tests.tiny_task import Tiny


class UnderInferenceMode(Tiny):
    """Whoever wrote it only ever runs the model."""

    def model(self):
        with torch.inference_mode():
            return super().model()

    def calibration(self):
        with torch.inference_mode():
            return [(inputs.clone(), target.clone()) for inputs, target in super().calibration()]


class Away:
    """A device that can no longer be reached."""

    def close(self):
        raise UserError("ssh://me@orin: connection lost")


def test_a_device_that_is_away_at_the_end_hides_no_result(good_run, tmp_path, monkeypatch):
    before, progress, warned = torch.get_num_threads(), Progress(), []
    monkeypatch.setattr(progress, "warn", warned.append)
    with open_run(copy_of(good_run, tmp_path / "run"), progress) as workspace:
        workspace.device = Away()
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
    assert warned[-1].startswith("what this run has left on the device is removed by its next command")


def test_a_model_and_samples_made_under_inference_mode_are_as_others(tmp_path):
    scored = []
    for name in ("tests.deploy.run.test_opening:UnderInferenceMode", "tests.tiny_task:Tiny"):
        run = tmp_path / name.split(":")[1]
        done(
            "score", "--task", name, "--target", "simulate", "--formats", "w4a8,fp32", "--effort", "fast", "--samples",
            "8", "--out", run,
        )  # fmt: skip
        scored.append((run / "scores.json").read_bytes())
    assert scored[0] == scored[1]


def test_who_waits_for_a_device_sees_it():
    asked, progress = [], Progress()
    device = SimpleNamespace(describe=lambda: asked.append("orin"))
    workspace = SimpleNamespace(times_here=False, not_measurable=None, device=device, progress=progress)
    _ask_device(workspace)
    assert list(progress.seconds) == ["ask the device"]
    for reason in ({"times_here": True}, {"not_measurable": "no engine"}):
        _ask_device(SimpleNamespace(**{**vars(workspace), **reason}))
    assert asked == ["orin"]
