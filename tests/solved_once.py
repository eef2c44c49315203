"""Answers of the solver, asked for once in a process: every report solves the same twelve problems of a tiny network
again, half of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from scipy import optimize


@contextmanager
def solved_once() -> Iterator[None]:
    """Keep the answer to each problem for as long as the context is open."""
    with mock.patch.object(optimize, "milp", _Answers(optimize.milp)):
        yield


class _Answers:
    """Gives the first answer again where every number of the problem is the same."""

    def __init__(self, solve: Callable[..., Any]) -> None:
        self._solve = solve
        self._kept: dict[Any, Any] = {}

    def __call__(
        self,
        c: np.ndarray,
        *,
        integrality: np.ndarray,
        bounds: optimize.Bounds,
        constraints: optimize.LinearConstraint,
        options: Mapping[str, Any],
    ) -> Any:
        rows = constraints.A
        numbers = (
            c, integrality, bounds.lb, bounds.ub, rows.data, rows.indices, rows.indptr, constraints.lb, constraints.ub,
        )  # fmt: skip
        key = (rows.shape, *(np.asarray(each).tobytes() for each in numbers), *options.items())
        if key not in self._kept:
            answer = self._solve(c, integrality=integrality, bounds=bounds, constraints=constraints, options=options)
            if answer.x is not None:
                answer.x.setflags(write=False)
            self._kept[key] = answer
        return self._kept[key]
