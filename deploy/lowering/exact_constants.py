"""torch's optimiser takes a sum with a tiny number for one with zero, and leaves it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TOLERANCE = "_abs_tol"


@contextmanager
def only_zero_is_zero() -> Iterator[None]:
    """Let the rewrite rules of torch's exporter take zero alone for zero, for as long as the context is open.

    They take what is less than 1e-8 for it: `log(p + 1e-10)` became `log(p)`, minus infinity where p is zero. Where
    they have no such tolerance, nothing changes.
    """
    try:  # private to onnxscript
        from onnxscript.rewriter._pattern_ir import Constant
    except ImportError:
        yield
        return

    def keep(constant: Any, tolerance: float) -> None:
        vars(constant)[_TOLERANCE] = tolerance

    # each constant has a tolerance of its own, which a property of the class stands before
    setattr(Constant, _TOLERANCE, property(lambda _: 0.0, keep))
    try:
        yield
    finally:
        delattr(Constant, _TOLERANCE)
