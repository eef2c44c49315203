"""Sums, products and comparisons of free sizes, computed once for each trace:
torch computes them anew for every tensor, a fifth of the time of a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.sym_node import SymNode

NAMES = (
    "_add", "_sub", "_mul", "_eq", "_ne", "_lt", "_le", "_gt", "_ge", "_and_", "_or_", "_sym_max", "_sym_min",
)  # fmt: skip
TORCHS = {name: getattr(SymNode, name) for name in NAMES}
"""The operators as torch has them."""


class _Results(dict[Any, SymNode]):
    """What is known in one trace; a copy of the trace begins without."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Results:
        return _Results()


@contextmanager
def symbols_kept() -> Iterator[None]:
    """Keep the results of operators on sizes, as long as what torch knows of the sizes stays the same.

    An operator that is recorded in a graph is left to torch.
    """
    with ExitStack() as patches:
        for name, operator in TORCHS.items():
            patches.enter_context(mock.patch.object(SymNode, name, _kept(name, operator)))
        yield


def _kept(name: str, operator: Callable[[SymNode, SymNode], SymNode]) -> Callable[[SymNode, SymNode], SymNode]:
    def computed(one: SymNode, two: SymNode) -> SymNode:
        sizes = one.shape_env
        if sizes is None or get_proxy_mode() is not None:
            return operator(one, two)
        known = vars(sizes).setdefault("_results_of_tests", _Results())
        key = (
            name, sizes._replacements_version_counter, one._expr, one._hint, one.pytype, two._expr, two._hint,
            two.pytype,
        )  # fmt: skip
        if key not in known:
            known[key] = operator(one, two)
        made = known[key]
        return SymNode(  # one of its own: torch tells by identity what it records in a graph
            made._expr,
            sizes,
            made.pytype,
            made._hint,
            made.constant,
            made.fx_node,
            optimized_summation=made._optimized_summation,
        )

    return computed
