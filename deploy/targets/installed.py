"""Which version of a runtime is installed on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, metadata


def packaged_version(packages: Sequence[str]) -> str | None:
    """Return the version that the first package found tells, without loading it; None when there is none of them."""
    for name in packages:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_version(module: str, packages: Sequence[str]) -> str | None:
    """Return the version of a Python module that loads on this machine, as it tells itself; None when there is none.

    A module that is there and does not load has the version of its package. Packages of Jetson leave no record that
    Python finds, so only the module can be asked.
    """
    try:
        return str(import_module(module).__version__)
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError, RuntimeError, AttributeError):
        return packaged_version(packages)
