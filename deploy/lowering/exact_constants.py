"""torch's optimiser takes a sum with a tiny number for one with zero, and leaves it out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

_TOLERANCE = "_abs_tol"


def only_zero_is_zero() -> AbstractContextManager[Any]:
    """Let the rewrite rules of torch's exporter take zero alone for zero, for as long as the context is open.

    They take what is less than 1e-8 for it: `log(p + 1e-10)` became `log(p)`, minus infinity where p is zero. Where
    they have no such tolerance, nothing changes.
    """
    try:  # private to onnxscript
        from onnxscript.rewriter._pattern_ir import Constant
    except ImportError:
        return nullcontext()

    def keep(constant: Any, tolerance: float) -> None:
        vars(constant)[_TOLERANCE] = tolerance

    return mock.patch.object(Constant, _TOLERANCE, property(lambda _: 0.0, keep), create=True)
