"""Threads of PyTorch wait asleep, where nobody has decided otherwise."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TORCH = "import torch\n"
OPENMP = """
import ctypes
from importlib.util import find_spec
from pathlib import Path

ctypes.CDLL(str(next(Path(find_spec("torch").origin).parent.glob("lib/libgomp*"))))
"""
PROGRAM = """
import sys
import cli

sys.argv = ["smpq", "--version"]
try:
    cli.main()
except SystemExit:
    pass
assert "torch" not in sys.modules  # OpenMP reads the setting when it is loaded
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="torch has another OpenMP there, which says it otherwise"
)
@pytest.mark.parametrize(
    ("asked", "loads", "spins"),
    [({}, TORCH, "0"), ({"GOMP_SPINCOUNT": "100"}, OPENMP, "100"), ({"OMP_WAIT_POLICY": "ACTIVE"}, OPENMP, None)],
)
def test_the_command_line_lets_threads_sleep(asked, loads, spins):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: text for name, text in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **asked}  # OpenMP says what it has read
    command = [sys.executable, "-c", PROGRAM + loads]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr
    (found,) = set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told))
    assert found == spins if spins is not None else int(found) > 100
