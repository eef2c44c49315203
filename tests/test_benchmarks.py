"""Scripts under `benchmarks/` follow when what they measure is moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ("calib", "smpq", "deploy", "tests", "examples", *sys.argv[2:]):
            raise  # others are of the extra `bench`
"""


def test_all_of_them_can_be_imported():
    names = sorted(file.stem for file in BENCHMARKS.glob("*.py"))
    assert "vit_b" in names
    command = [sys.executable, "-c", IMPORT_ALL, str(BENCHMARKS), *names]
    found = subprocess.run(command, cwd=BENCHMARKS.parent, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
