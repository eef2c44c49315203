"""The same command gives the same files, byte for byte, in every process: nothing depends on the order of a set."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, done

COMMANDS = {
    "simulate": ([*TINY, "--target", "simulate", "--formats", "w2a8,w3a8,w4a8,w8a8,w4a16,w8a16,fp32"], None),
    "orin": (
        [*TINY, "--target", "jetson-orin", "--formats", "w8a8,fp16,fp32"],
        dict.fromkeys(("first", "second", "head"), "fp32"),
    ),
}


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.iterdir()) if path.suffix in {".json", ".onnx"}}


def make(out: Path) -> None:
    for name, (options, policy) in COMMANDS.items():
        run = out / name
        done("score", *options, "--out", run)
        done("solve", run, "--budget", "avg_bits=9")
        done("explain", run, "--evaluations", "24")
        if policy:
            (run / "policy.json").write_text(json.dumps({"schema": 1, "policy": policy}))
        done("export", run)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(warm, tmp_path):
    """This one, and one whose sets have another order."""
    with warm.run("tests.test_same_files", tmp_path / "2", environment={"OMP_NUM_THREADS": "1"}) as other:
        said = other.stdout.read()
    assert other.returncode == 0
    assert int(said) != hash("smpq"), "sets of text have another order there"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make(tmp_path / "1")
    finally:
        torch.set_num_threads(before)
    for name in COMMANDS:
        first, second = files(tmp_path / "1" / name), files(tmp_path / "2" / name)
        assert {"costs.json", "scores.json", "space.json", "policy.json", "contributions.json", "export.json"} <= set(
            first
        )
        assert list(first) == list(second)
        assert [file for file in first if first[file] != second[file]] == []
        space, costs = json.loads(first["space.json"]), json.loads(first["costs.json"])["costs"]["size"]["parts"]
        for group, row in costs.items():
            assert list(row) == list(dict.fromkeys((*space["groups"][group]["formats"], space["reference"])))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        make(Path(sys.argv[1]))
    print(hash("smpq"))
