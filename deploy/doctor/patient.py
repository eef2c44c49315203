"""The machine that is examined, what is asked of it, and how things are installed on it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass

from deploy.devices.connection import Address
from deploy.doctor.facts import Facts
from deploy.doctor.record import Finding, State
from deploy.targets.target import Target

_OWN_ENVIRONMENT = "~/smpq"


@dataclass(frozen=True)
class Patient:
    """A machine and its facts. `address` is empty for this machine; `target` is what it has to serve, None for
    anything.
    """

    address: str
    facts: Facts
    target: Target | None

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        return not self.address

    @property
    def python(self) -> str:
        """The Python that is asked, as written in a command there."""
        return shlex.quote(sys.executable) if self.here else Address.from_text(self.address).python_word

    @property
    def is_jetson(self) -> bool:
        """Whether it is a Jetson, where apt installs what belongs to the GPU."""
        return self.facts.jetson is not None

    @property
    def may_have_gpu(self) -> bool:
        """Whether there is an NVIDIA GPU, with a driver that works or not."""
        return self.is_jetson or self.facts.nvidia_devices > 0 or self.facts.probes.cuda.library is not None

    def needs(self, runtime: str) -> bool:
        """Whether the target's engines are built, or timed, with a runtime."""
        return self.target is not None and self.target.timed and self.target.runtime == runtime

    def needs_provider(self, provider: str) -> bool:
        """Whether ONNX Runtime computes the target's engines with this provider."""
        return self.target is not None and self.target.timed and provider in self.target.providers[:1]

    def install(self, *packages: str) -> tuple[str, ...]:
        """Return the commands that install packages for the Python that was asked, or into an environment where it
        takes none.
        """
        names = " ".join(map(shlex.quote, packages))
        python = self.facts.python
        if python.managed:
            return (
                f"python3 -m venv --system-site-packages {_OWN_ENVIRONMENT}",
                f"{_OWN_ENVIRONMENT}/bin/python -m pip install {names}",
            )
        return (*self._pip, f"{self.python} -m pip install {names}")

    def uninstall(self, *packages: str) -> tuple[str, ...]:
        """Return the commands that take packages away."""
        return (*self._pip, f"{self.python} -m pip uninstall -y {' '.join(map(shlex.quote, packages))}")

    @property
    def _pip(self) -> tuple[str, ...]:
        """The command that installs pip, where there is none."""
        if self.facts.python.pip:
            return ()
        return (f"{self.python} -m ensurepip",) if self.facts.python.venv else ("sudo apt install python3-pip",)

    def with_python(self, python: str) -> str:
        """Return this command for another Python of the machine."""
        if self.here:
            return f"{shlex.quote(python)} -m pip install smpq"
        return f"smpq doctor --device {shlex.quote(self.address.partition('?')[0] + '?python=' + python)}"


def found(subject: str, state: State, text: str, *mends: str) -> Finding:
    """Return a finding."""
    return Finding(subject=subject, state=state, text=text, mends=mends)
