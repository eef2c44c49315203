"""Operators that hold values between two limits, as ReLU does."""

from __future__ import annotations

import math

from torch import fx

from calib.network.nodes import operator_name

_RELUS = {"relu", "relu6"}
_ALL = {*_RELUS, "clamp", "clip", "clamp_min", "clamp_max", "hardtanh"}
_CLAMPS = {"clamp": (-math.inf, math.inf), "clip": (-math.inf, math.inf), "hardtanh": (-1.0, 1.0)}


def is_clip(node: fx.Node) -> bool:
    """Whether a node is a ReLU, or a clamp by numbers with zero between them: integers that span what it gives, and
    zero, saturate where it does.
    """
    name = operator_name(node)
    if name in _RELUS:
        return True
    if name not in _CLAMPS or node.kwargs:
        return False
    given = [*node.args[1:], None, None][:2]
    low, high = (usual if limit is None else limit for limit, usual in zip(given, _CLAMPS[name], strict=True))
    return isinstance(low, int | float) and isinstance(high, int | float) and low <= 0 <= high


def is_clipped(node: fx.Node) -> bool:
    """Whether a ReLU or any clamp reads a node."""
    return any(operator_name(user) in _ALL for user in node.users)


def clipped(node: fx.Node) -> fx.Node:
    """Return the clip behind a node when that is all that reads it, else the node itself.

    Several in a row are one in the exported model, so it is the last of them; where one of them is not `is_clip`, the
    node itself.
    """
    last = node
    while len(last.users) == 1 and operator_name(user := next(iter(last.users))) in _ALL:
        if not is_clip(user):
            return node
        last = user
    return last
