"""Machines that a doctor examines: an environment without packages, and one like that of JetPack 6."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import venv
from dataclasses import dataclass, field
from pathlib import Path

from calib.files.storage import record_from_text
from deploy.doctor.ask import doctor_program
from deploy.doctor.facts import Answer
from tests.deploy.runner.c_library import compiled
from tests.deploy.runner.test_state import JETSON, tree

ORIN = {
    **JETSON,
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n",
    "proc/meminfo": "MemTotal:        7801856 kB\nMemFree:          201856 kB\nMemAvailable:    5801856 kB\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "usr/src/tensorrt/bin/trtexec": "",
    "usr/lib/python3.10/dist-packages/tensorrt-10.3.0.dist-info/METADATA": "Name: tensorrt\nVersion: 10.3.0\n",
}
NO_LIBRARY = "libnvinfer.so.10: cannot open shared object file: No such file or directory"


@dataclass
class Machine:
    """A Python in a virtual environment, what it finds, and the root of the files that describe the machine."""

    python: Path
    root: Path
    site: Path
    libraries: Path
    variables: dict[str, str] = field(default_factory=dict)

    def package(self, name: str, version: str, code: str | None = None) -> None:
        """Install a distribution, with a module of this code."""
        information = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if code is not None:
            (self.site / name.replace("-", "_")).mkdir()
            (self.site / name.replace("-", "_") / "__init__.py").write_text(code)

    def link(self, name: str) -> None:
        """Let a package of this environment be imported there."""
        for file in importlib.metadata.files(name) or ():
            top = Path(str(file)).parts[0]
            if top not in ("..", "__pycache__") and not (self.site / top).exists():
                (self.site / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)

    def files(self, files: dict[str, str]) -> None:
        tree(self.root, files)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "PYTHONPATH": str(self.site), "LD_LIBRARY_PATH": str(self.libraries), **self.variables}

    def answer(self) -> Answer:
        """Ask it as ssh does."""
        done = subprocess.run(
            [self.python, "-", "--root", self.root], input=doctor_program(), env=self.environment, capture_output=True,
            text=True, check=True
        )  # fmt: skip
        return record_from_text(done.stdout, Answer, "the answer", "")

    def wrapper(self, file: Path) -> Path:
        """Write a program that is this Python, for the address of a device."""
        variables = " ".join(
            f"{name}='{value}'" for name, value in self.environment.items() if name not in ("PATH", "HOME")
        )
        file.write_text(f'#!/bin/sh\nexec env {variables} {self.python} "$@" --root {self.root}\n')
        file.chmod(0o755)
        return file


def bare(directory: Path) -> Machine:
    """Make a machine with a Python and nothing else."""
    venv.create(directory / "venv", symlinks=True, with_pip=False)
    for name in ("root", "site", "libraries"):
        (directory / name).mkdir()
    return Machine(directory / "venv/bin/python", directory / "root", directory / "site", directory / "libraries")


def jetpack6(directory: Path) -> Machine:
    """Make a machine like an Orin with JetPack 6.2: cuda-python 13, and TensorRT by pip, which has no libraries."""
    machine = bare(directory)
    machine.files(ORIN)
    machine.link("numpy")
    machine.package("cuda-python", "13.0.3")
    machine.package("tensorrt", "10.3.0", f"raise ImportError({NO_LIBRARY!r})\n")
    compiled("doctor_driver.c", machine.libraries / "libcuda.so.1")
    return machine
