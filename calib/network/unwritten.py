"""Trace and export without the Python code of graphs that nobody runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def unwritten_code() -> AbstractContextManager[None]:
    """Let torch write the code of a graph when it is first run or read, for as long as the context is open.

    A trace and an export make some thirty graphs and run few of them. torch.compile does the same. Where torch has no
    such setting, code is written at once.
    """
    try:  # private to torch
        from torch.fx._lazy_graph_module import _use_lazy_graph_module
    except ImportError:
        return nullcontext()
    return _use_lazy_graph_module(True)
