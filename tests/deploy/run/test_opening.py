"""What a run takes over from a task."""

from __future__ import annotations

import torch

from tests.commands import done
from tests.tiny_task import Tiny


class UnderInferenceMode(Tiny):
    """Whoever wrote it only ever runs the model."""

    def model(self):
        with torch.inference_mode():
            return super().model()

    def calibration(self):
        with torch.inference_mode():
            return [(inputs.clone(), target.clone()) for inputs, target in super().calibration()]


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
