"""What `smpq run` does where little is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.run.settings import Settings, usual_directory
from tests.commands import TINY, smpq


@pytest.mark.slow
def test_no_budget_asks_for_the_fastest_within_half_a_point(tmp_path, monkeypatch):
    """Eight samples never show that half a point is not lost, so the float model is handed over."""
    monkeypatch.chdir(tmp_path)
    result = smpq("run", *TINY, "--target", "simulate", "--formats", "INT8,fp32")
    said = result.err + result.out
    assert "tests.tiny_task:task for simulate within drop=0.5, in runs/tests.tiny_task-task-simulate" in said
    assert result.code == 0, said
    run = tmp_path / "runs" / "tests.tiny_task-task-simulate"
    assert '"w8a8"' in (run / "space.json").read_text()
    assert (run / "report.html").is_file()


def test_the_usual_directory_is_named_by_task_and_target():
    assert usual_directory(Settings(task="my.models:net", target="ort-cpu")) == Path("runs/my.models-net-ort-cpu")
    assert usual_directory(Settings(task="digits")) == usual_directory(Settings(task="digits", effort="fast"))
