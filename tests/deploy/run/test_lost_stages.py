"""Which stages of a verification lost accuracy: one rule, for the command, the file and the report."""

import pytest

from deploy.files.verification import StageRow, lost_stages
from smpq.files import Interval

SAMPLES = 100
FIRST = StageRow(
    mean=0.0, interval=Interval(-0.2, 0.2), change=None, change_interval=None, agreement=None, samples=SAMPLES
)
"""Samples spread by about 1."""


def stages(**changes):
    rows = {
        name: StageRow(
            mean=change,
            interval=Interval(change, change),
            change=change,
            change_interval=Interval(*ends),
            agreement=None,
            samples=SAMPLES,
            problem=problem,
        )
        for name, (change, ends, problem) in changes.items()
    }
    return {"eager": FIRST, **rows}


@pytest.mark.parametrize(
    ("found", "lost"),
    [
        ({"onnx": (-1e-8, (-2e-8, -1e-9), None)}, []),  # certain, and a rounding
        ({"onnx": (-1e-2, (-2e-2, 1e-3), None)}, []),  # may be chance
        ({"onnx": (-1e-2, (-2e-2, -1e-3), None)}, ["onnx"]),
        (
            {"fake_quant": (-1e-2, (-2e-2, -1e-3), None), "engine": (-3e-2, (-4e-2, -1e-3), None)},
            ["engine", "fake_quant"],
        ),
        (
            {"fake_quant": (-1e-2, (-2e-2, -1e-3), None), "engine": (0.0, (0.0, 0.0), "other outputs")},
            ["engine", "fake_quant"],
        ),
    ],
)
def test_a_stage_lost_accuracy(found, lost):
    assert lost_stages(stages(**found)) == lost
