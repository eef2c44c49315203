"""The examples with trained weights and real data, which are not part of this repository."""

import os

import pytest
import torch

from calib.tasks import load_task

FIGURES = {
    "detection": ("fastestdet", 35.6, 0.2),
    "denoising": ("dncnn25", 30.43, 0.02),
    "language": ("stories260k", -1.427, 0.003),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_the_float_model_reaches_what_is_known_of_it(name, shared):
    if name == "denoising" and "SMPQ_DENOISING" not in os.environ:
        pytest.skip("takes 80 CPU seconds: set SMPQ_DENOISING=1")
    data = shared / "data" / "real"
    if not data.is_dir():
        pytest.skip(f"needs trained weights and real data: {data} does not exist")
    weights, figure, tolerance = FIGURES[name]
    task = load_task(f"examples.{name}:task", data, data / f"{weights}.safetensors")
    model = task.model()
    with torch.no_grad():
        records = [one for batch in task.evaluation() for one in task.records(model(*batch.inputs), batch.target)]
    assert task.metric_of(records) == pytest.approx(figure, abs=tolerance)
