"""What a run's results depend on, as hashes by part, so that a change is found and can be named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from calib.batches import add_to_hash
from calib.files.storage import Record, in_a_line
from calib.network.code_hash import BYTECODE, code_hash
from calib.network.graph import TracedModel


class Fingerprint(Record, frozen=True):
    """Hashes (sha256, hex) of all that decides a run's results; equal exactly for equal work.

    `graph` covers the traced graph: operators, their arguments and constants, shapes, types, and the names of
    parameters. `weights` covers the values of parameters and buffers, `data` the calibration batches as the task gives
    them, `judges` the code of the functions that say what outputs are worth, as `bytecode` has it
    (`calib.network.code_hash`), `versions` the packages.
    """

    graph: str
    weights: str
    data: str
    judges: str
    bytecode: str
    versions: dict[str, str]

    @property
    def key(self) -> str:
        """One hash (sha256, hex) over all parts but the code, which is other code in other versions of Python."""
        parts = [
            self.graph,
            self.weights,
            self.data,
            *(f"{name} {version}" for name, version in sorted(self.versions.items())),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """Return in words what changed from here to `other`."""
        parts = {"the model's forward()": "graph", "the weights": "weights", "the calibration data": "data"}
        found = [words for words, name in parts.items() if getattr(self, name) != getattr(other, name)]
        if self.bytecode == other.bytecode and self.judges != other.judges:
            found.append("the task's metric, loss or divergence")
        for package in sorted({*self.versions, *other.versions}):
            before, after = self.versions.get(package, "none"), other.versions.get(package, "none")
            if before != after:
                found.append(in_a_line(f"{package} {before} -> {after}"))
        return tuple(found)


def fingerprint(
    traced: TracedModel, data: str, versions: Mapping[str, str], judges: Iterable[Callable[..., Any] | None] = ()
) -> Fingerprint:
    """Return the fingerprint of a traced model; the same in every process. `data` is the hash of its calibration
    batches (`calib.batches.content_hash`), `judges` are the functions that say what outputs are worth.
    """
    return Fingerprint(_graph_hash(traced), _weights_hash(traced), data, code_hash(judges), BYTECODE, dict(versions))


def _graph_hash(traced: TracedModel) -> str:
    """Hash the nodes in order, each by its place; a free size is called by the order in which it first appears."""
    digest = hashlib.sha256()
    places: dict[str, str] = {}
    symbols: dict[str, str] = {}

    def written(argument: Any) -> Any:
        return _Text(places[argument.name]) if isinstance(argument, fx.Node) else argument

    for node in traced.graph.nodes:
        places[node.name] = f"%{len(places)}"
        what: object = str(node.target)
        if node.op == "placeholder":
            what = traced.parameter_names.get(node.name, "input" if node.name in traced.inputs else "constant")
        args = fx.node.map_aggregate(fx.node.map_arg(node.args, lambda found: found), written)
        kwargs = fx.node.map_aggregate(dict(sorted(node.kwargs.items())), written)
        digest.update(f"{node.op} {what} {args!r} {kwargs!r} {_described(node.meta.get('val'), symbols)}\n".encode())
        if node.op == "placeholder" and node.name in traced.state and node.name not in traced.parameter_names:
            add_to_hash(digest, traced.state[node.name])
    digest.update(f"{traced.out_spec} {traced.dynamic_batch}".encode())
    return digest.hexdigest()


class _Text(str):
    """A text that is written without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _described(value: Any, symbols: dict[str, str]) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_described(part, symbols) for part in value)})"
    if isinstance(value, Tensor):
        return f"{value.dtype} [{', '.join(_size(size, symbols) for size in value.shape)}]"
    return _size(value, symbols) if isinstance(value, torch.SymInt) else type(value).__name__


def _size(size: int | torch.SymInt, symbols: dict[str, str]) -> str:
    if not isinstance(size, torch.SymInt):
        return str(size)
    expression = size.node.expr
    for symbol in sorted(expression.free_symbols, key=str):
        symbols.setdefault(str(symbol), f"n{len(symbols)}")
    return str(expression.subs({symbol: symbols[str(symbol)] for symbol in expression.free_symbols}, simultaneous=True))


def _weights_hash(traced: TracedModel) -> str:
    digest = hashlib.sha256()
    used = {node.name for node in traced.graph.find_nodes(op="placeholder") if node.users}
    for node, name in sorted(traced.parameter_names.items(), key=lambda item: item[1]):
        if node in used:  # not the batches that a norm has counted
            digest.update(name.encode())
            add_to_hash(digest, traced.state[node])
    return digest.hexdigest()
