"""Operators that only move values, so that what was on a quantiser's grid stays on it."""

from __future__ import annotations

from torch import fx

from calib.network.nodes import operator_name

MOVES = {
    "max_pool2d", "max_pool1d", "view", "_unsafe_view", "reshape", "flatten", "transpose", "permute", "squeeze",
    "unsqueeze", "slice", "pad",
    "constant_pad_nd", "alias", "clone", "contiguous",
}  # fmt: skip
"""Operators that only move values (or take the largest), so that a quantised tensor stays on its grid."""

_AVERAGES = {"mean", "avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool1d"}


def is_averaged(node: fx.Node) -> bool:
    """Whether all that reads a node averages its values, which leaves little of what rounding does to each."""
    return bool(node.users) and all(operator_name(user) in _AVERAGES for user in node.users)


def keeps_grid(node: fx.Node) -> bool:
    """Whether a node only moves values of its first input; padding with anything but zero adds a value of its own."""
    name = operator_name(node)
    if name not in MOVES:
        return False
    if name in {"pad", "constant_pad_nd"}:
        mode = node.args[2] if name == "pad" and len(node.args) > 2 else "constant"
        value = node.args[-1] if len(node.args) > (3 if name == "pad" else 2) else 0
        return mode != "constant" or not value
    return True
