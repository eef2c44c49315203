"""What this machine needs of its own: the packages of the search, and ssh for devices."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from calib.errors import UserError
from deploy.devices.connection import OPTIONS_VARIABLE, ssh_options
from deploy.doctor.facts import TorchProbe
from deploy.doctor.patient import found
from deploy.doctor.record import Finding
from deploy.targets.rules import version_fits

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?$")


@dataclass(frozen=True)
class Requirement:
    """A package that smpq needs: the oldest version, None for any, and what is installed, None for nothing."""

    name: str
    oldest: str | None
    installed: str | None

    @property
    def met(self) -> bool:
        """Whether it is there, and new enough."""
        return self.installed is not None and (self.oldest is None or version_fits(self.installed, f">={self.oldest}"))


def requirements() -> list[Requirement]:
    """Return what smpq needs, and what is installed of it; nothing where smpq runs without being installed."""
    try:
        lines = metadata.requires("smpq") or []
    except metadata.PackageNotFoundError:
        return []
    matches = (_REQUIREMENT.match(line) for line in lines)  # those of extras have a condition behind them
    return [Requirement(match[1], match[2], _installed(match[1])) for match in matches if match is not None]


def here_findings(needed: list[Requirement], torch: TorchProbe | None, *, over_ssh: bool) -> Iterator[Finding]:
    """Yield what is found of the requirements, PyTorch and ssh; ssh is only needed when a device is asked over it."""
    yield _requirements(needed)
    if torch is not None:
        yield _torch(torch)
    missing = [tool for tool in ("ssh", "scp") if shutil.which(tool) is None]
    if missing:
        text = f"{' and '.join(missing)} missing: --device needs them"
        yield found("ssh", "problem" if over_ssh else "note", text, "sudo apt install openssh-client")
    else:
        yield found("ssh", "ok", "ssh and scp are there")
    try:
        options = ssh_options()
    except UserError as error:
        yield found("ssh", "problem", str(error), f"unset {OPTIONS_VARIABLE}")
    else:
        if options:
            yield found("ssh", "ok", f"{OPTIONS_VARIABLE} adds {shlex.join(options)}")


def _requirements(needed: list[Requirement]) -> Finding:
    wrong = [each for each in needed if not each.met]
    if wrong:
        text = ", ".join(
            f"{each.name} {each.installed or 'is missing'}" + (f" (>={each.oldest} is needed)" if each.oldest else "")
            for each in wrong
        )
        wanted = " ".join(shlex.quote(f"{each.name}>={each.oldest}" if each.oldest else each.name) for each in wrong)
        return found("smpq needs", "problem", text, f"{shlex.quote(sys.executable)} -m pip install --upgrade {wanted}")
    if not needed:
        return found("smpq needs", "note", "smpq is not installed as a package, so its requirements are not known")
    return found("smpq needs", "ok", ", ".join(f"{each.name} {each.installed}" for each in needed))


def _torch(probe: TorchProbe) -> Finding:
    if probe.version is None:
        text = f"it does not load: {probe.trouble or 'it is not installed'}"
        return found(
            "PyTorch", "problem", text, f"{shlex.quote(sys.executable)} -m pip install --force-reinstall torch"
        )
    build = f"built for CUDA {probe.build}" if probe.build is not None else "built for the CPU"
    seen = "it sees a GPU" if probe.cuda else "it sees no GPU, so the search runs on the CPU"
    return found("PyTorch", "ok", f"{probe.version}, {build}; {seen}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
