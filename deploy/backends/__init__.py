"""Back ends: one folder a runtime, chosen by the target's table; `deploy.backends.base.backend` tells how to add
one.
"""

from __future__ import annotations

from deploy.backends import onnxruntime, simulate, tensorrt
from deploy.backends.base import BACKENDS, Backend
from deploy.targets.target import Target

__all__ = ["BACKENDS", "Backend", "backend_of", "onnxruntime", "simulate", "tensorrt"]


def backend_of(target: Target) -> Backend:
    """Return the back end that the target's table names; a name that is not registered is a bug, hence ValueError."""
    if target.backend not in BACKENDS:
        raise ValueError(f"the table of {target.family} names {target.backend!r}: known are {', '.join(BACKENDS)}")
    return BACKENDS[target.backend](target)
