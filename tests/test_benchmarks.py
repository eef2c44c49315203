"""Scripts under `benchmarks/` follow when what they measure is moved."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def import_all() -> list[str]:
    """Import every script, and return the names; those are left out that need a package of the extra `bench`."""
    sys.path.insert(0, str(BENCHMARKS))
    names = sorted(file.stem for file in BENCHMARKS.glob("*.py"))
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("calib", "smpq", "deploy", "tests", "examples", *names):
                raise
    return names


def test_all_of_them_can_be_imported(warm):
    """In a process of its own: they change what is imported and how many threads there are."""
    process = warm.run("tests.expression", __name__, "import_all()")
    said, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert "'vit_b'" in said
