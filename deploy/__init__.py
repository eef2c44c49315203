"""Engines for a target: `from deploy import optimize` does the whole job from Python. Importing it loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.python.optimizing import optimize

__all__ = ["optimize"]


def __getattr__(name: str) -> Any:
    if name != "optimize":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deploy.python.optimizing import optimize

    return optimize
