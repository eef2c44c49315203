"""`smpq run` killed with SIGKILL and started again; benchmarks/kill_resume.py does it at random moments and with a
larger task.
"""

import random
import signal
import sqlite3
import time

import pytest
import torch

from smpq.methods import METHODS
from smpq.training.finetuned import FineTunedWeights
from tests.commands import TINY, smpq

COMMAND = [
    "run", *TINY[:2], "--evaluations", "60", "--samples", "16", "--target", "simulate", "--formats",
    "w2a8,w3a8,w4a8,w8a8,w4a16,w8a16,fp32", "--budget", "avg_bits=4",
]  # fmt: skip


def rows(run):
    """What the journal holds, in the order in which it was written."""
    if not (run / "journal.sqlite").exists():
        return []
    database = sqlite3.connect(run / "journal.sqlite")
    try:
        return database.execute("SELECT rowid, policy, value FROM evaluations ORDER BY rowid").fetchall()
    except sqlite3.OperationalError:  # the table, or the right to write, is not there yet
        return []
    finally:
        database.close()


def finish(run, command=COMMAND):
    """Start the command in this process, with as many threads as the others have, and see its end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = smpq(*command, "--out", run)
    finally:
        torch.set_num_threads(before)
    assert result.code in {0, 1}, result.err


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(warm, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(whole)
    expected = rows(whole)
    assert len(expected) > 60
    survivors = []
    for known, options in ((1, ("--workers", "2")), (50, ())):
        process = warm.run("cli", *COMMAND, "--out", run, *options, environment={"OMP_NUM_THREADS": "1"})
        while len(rows(run)) < known:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        survivors.append(rows(run))
    finish(run)
    found = rows(run)
    assert [row[0] for row in found] == list(range(1, len(found) + 1)), (
        "a row that was replaced would have a new number"
    )
    assert {row[1:] for row in found} == {row[1:] for row in expected}
    assert all(found[: len(known)] == known for known in survivors)
    assert len(survivors[0]) < len(expected)
    for name in ("scores.json", "policy.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, found in METHODS.items() if found.trains])
def test_a_training_killed_again_and_again_ends_as_if_it_had_not_been(warm, tmp_path, method):
    command = [
        "run", "--task", "tests.trainable_task:task", "--target", "simulate", "--formats", "w1a8,w2a8,w3a8,w4a8",
        "--rounding", "nearest", "--budget", "avg_bits=2.5", "--method", method, "--finetune", "6",
    ]  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(whole, command)
    chance, state, written = random.Random(method), run / "training.safetensors", []
    for _ in range(2):
        process = warm.run("cli", *command, "--out", run, environment={"OMP_NUM_THREADS": "1"})
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        written.append(not (run / "finetuned.safetensors").exists())
    assert written[0], "it was killed before its end"
    finish(run, command)
    assert (run / "policy.json").read_bytes() == (whole / "policy.json").read_bytes()
    one, other = (FineTunedWeights.load(path / "finetuned.safetensors") for path in (whole, run))
    assert one.parameters.keys() == other.parameters.keys()
    assert all(torch.equal(tensor, other.parameters[name]) for name, tensor in one.parameters.items())
    assert all(
        torch.equal(weight.values, other.weights[path].values) and torch.equal(weight.scale, other.weights[path].scale)
        for path, weight in one.weights.items()
    )
    assert (one.quantizers, one.after, one.history) == (other.quantizers, other.after, other.history)
    assert not state.exists()
