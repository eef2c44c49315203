"""Threads of PyTorch wait asleep, where nobody has decided otherwise."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import sys
import cli

sys.argv = ["smpq", "--version"]
try:
    cli.main()
except SystemExit:
    pass
assert "torch" not in sys.modules  # OpenMP reads the setting when it is loaded
import torch
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="torch has another OpenMP there, which says it otherwise"
)
@pytest.mark.parametrize(
    ("asked", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "100"}, "100"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_the_command_line_lets_threads_sleep(asked, spins):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: text for name, text in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **asked}  # OpenMP says what it has read
    command = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr
    (found,) = set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told))
    assert found == spins if spins is not None else int(found) > 100
