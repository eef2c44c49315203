"""The games of the estimator benchmarks: tables of every coalition's value, so that exact Shapley values are known.

`digits_units`: 10 players, the quantisable units of the built-in digits network; a member is moved from float to w2a8.
`digits_tensors`: 18 players, every integer tensor of that network: the weight of each of the 10 units at 2 bits, and
each of the 8 activation tensors that they read at 4 bits. Rounding is `nearest` in both, so that members disturb each
other; the value is minus the mean KL divergence (nats) from the float network on calibration images. `synthetic`:
pairs, triples and one term of five players, squashed by a saturation that makes interactions of every order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.formats.integers import integer
from calib.network.execution import Edit, Edits
from calib.network.fold import trace_folded
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.tasks import load_task

IMAGES = 32
WEIGHT, UNIT, ACTIVATION_BITS = Format.from_text("w2a8"), Format.from_text("w2a8"), 4
_KEPT = 2


@dataclass(frozen=True)
class Player:
    """What one member of a coalition changes in the graph; names are those of graph nodes."""

    name: str
    parameters: dict[str, Tensor] = field(default_factory=dict)
    edges: dict[tuple[str, str], Edit] = field(default_factory=dict)

    @property
    def touched(self) -> set[str]:
        """The parameters, and the nodes that read a changed tensor."""
        return set(self.parameters) | {consumer for _, consumer in self.edges}


@dataclass(frozen=True)
class Table:
    """A game given by its values `[2 ** players]`; the first player is the most significant bit of the index."""

    values: np.ndarray
    names: tuple[str, ...]

    @property
    def players(self) -> int:
        """How many there are."""
        return len(self.names)

    def __call__(self, coalitions: np.ndarray) -> np.ndarray:
        """Return `[k]` values of boolean coalitions `[k, players]`."""
        return self.values[coalitions @ (1 << np.arange(self.players)[::-1])]


def digits_game(name: str) -> Table:
    """Return `digits_units` or `digits_tensors`; worked out on first use and then kept in the directory for temporary
    files.
    """
    traced, players, inputs = _network(name)
    path = Path(tempfile.gettempdir()) / f"smpq-{name}-{_fingerprint(traced, players, inputs)}.npz"
    if not path.exists():
        start = time.perf_counter()
        values = _all_values(traced, players, inputs)
        _check(traced, players, inputs, values)
        print(f"{name}: {len(values)} coalitions in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, values=values)
        unfinished.replace(path)
    with np.load(path) as stored:
        return Table(stored["values"], tuple(player.name for player in players))


def _fingerprint(traced: TracedModel, players: list[Player], inputs: Tensor) -> str:
    """Return a hash of everything that the values depend on, but for the arithmetic of the processor."""
    state = hashlib.sha256(torch.__version__.encode())
    for tensor in (
        inputs,
        *traced.state.values(),
        *(weight for player in players for weight in player.parameters.values()),
    ):
        state.update(tensor.contiguous().numpy().tobytes())
    state.update(repr([(player.name, player.edges) for player in players]).encode())
    return state.hexdigest()[:16]


def synthetic_game(players: int, seed: int = 0) -> Table:
    """Return a game outside every surrogate's class: -tanh(cost), cost a sum of single, pair, triple and five-player
    terms.
    """
    generator = np.random.default_rng(seed)
    table = np.arange(2**players)[:, None] >> np.arange(players)[::-1] & 1
    alone = generator.lognormal(0, 1, players) / players
    cost = table @ alone
    for size, count, strength in ((2, 2 * players, 0.5), (3, players, 0.5), (5, 1, 1.0)):
        for _ in range(count):
            member = generator.choice(players, size, replace=False)
            sign = generator.choice([1.0, -0.3])
            cost = cost + sign * strength * alone[member].mean() * generator.exponential() * table[:, member].all(1)
    return Table(-np.tanh(cost), tuple(f"p{i}" for i in range(players)))


def record(rows: list[dict[str, Any]], seeds: str, **extra: Any) -> dict[str, Any]:
    """Return what a benchmark keeps: when, where and with what the rows were measured."""
    versions = {package: version(package) for package in ("numpy", "scipy", "torch")} | {
        "python": platform.python_version()
    }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{_processor()}, {os.cpu_count()} cores",
        "versions": versions,
        "seeds": seeds,
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
        **extra,
        "rows": rows,
    }


def keep(name: str, record: dict[str, Any]) -> None:
    """Print a record as JSON and keep it under `benchmarks/results`."""
    text = json.dumps(record, indent=1)
    print(text)
    (Path(__file__).parent / "results" / f"{name}.json").write_text(text + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _network(name: str) -> tuple[TracedModel, list[Player], Tensor]:
    task = load_task("digits")
    batches = list(task.calibration())
    example = (batches[0].inputs[0][:2],)
    traced, _ = trace_folded(task.model().eval(), example)
    units, _ = find_units(traced)
    calibration = Calibration(traced, units, batches, CalibrationSettings(rounding="nearest"))
    players = {"digits_units": _unit_players, "digits_tensors": _tensor_players}[name](units, calibration)
    return traced, players, torch.cat([batch.inputs[0] for batch in batches])[:: 512 // IMAGES][:IMAGES]


def _unit_players(units: tuple[Unit, ...], calibration: Calibration) -> list[Player]:
    return [
        Player(
            unit.path,
            {unit.weight: calibration.weight(unit, UNIT).dequantize()},
            {
                (tensor, call): calibration.quantizer(tensor, UNIT.activation, "affine")
                for tensor, call in zip(unit.inputs, unit.calls, strict=True)
            },
        )
        for unit in units
    ]


def _tensor_players(units: tuple[Unit, ...], calibration: Calibration) -> list[Player]:
    readers: dict[str, list[str]] = {}
    for unit in units:
        for tensor, call in zip(unit.inputs, unit.calls, strict=True):
            readers.setdefault(tensor, []).append(call)
    players: dict[str, Player] = {}
    for unit in units:
        for tensor in unit.inputs:
            quantizer = calibration.quantizer(tensor, integer(ACTIVATION_BITS), "affine")
            players[tensor] = Player(f"{tensor} a4", edges={(tensor, call): quantizer for call in readers[tensor]})
        players[unit.path] = Player(f"{unit.path} w2", {unit.weight: calibration.weight(unit, WEIGHT).dequantize()})
    return list(players.values())


def _all_values(traced: TracedModel, players: list[Player], inputs: Tensor) -> np.ndarray:
    """Return the value of every coalition.

    A node is computed anew only when a player before it in the graph has changed. Players stand in the order of the
    graph and the last ones change most often, so that nearly all of the work is in the last layers.
    """
    count = len(players)
    bits = {player.name: 1 << (count - 1 - index) for index, player in enumerate(players)}
    depends: dict[str, int] = {}
    for node in traced.graph.nodes:
        own = sum(bits[player.name] for player in players if node.name in player.touched)
        depends[node.name] = own
        for argument in node.all_input_nodes:
            depends[node.name] |= depends[argument.name]
    kept: dict[str, dict[int, Any]] = {node.name: {} for node in traced.graph.nodes}
    steps = [node for node in traced.graph.nodes if node.op == "call_function"]
    output = next(node for node in traced.graph.nodes if node.op == "output").all_input_nodes[0]
    last: list[Tensor] = []
    reference = traced.run((inputs,))
    values = []
    with torch.no_grad():
        for coalition in range(2**count):
            members = [player for player in players if bits[player.name] & coalition]
            _run_changed(traced, steps, members, coalition, depends, kept, inputs)
            last.append(kept[output.name][coalition & depends[output.name]])
            if len(last) == 1024 or coalition == 2**count - 1:
                logits = torch.stack(last)
                flat = _divergence(logits.flatten(0, 1), reference.repeat(len(last), 1))
                values.append(-flat.reshape(len(last), -1).double().mean(1).numpy())
                last.clear()
    return np.concatenate(values)


def _run_changed(
    traced: TracedModel,
    steps: list[fx.Node],
    members: list[Player],
    coalition: int,
    depends: dict[str, int],
    kept: dict[str, dict[int, Any]],
    inputs: Tensor,
) -> None:
    parameters = traced.state | dict.fromkeys(traced.inputs, inputs)
    edges: dict[tuple[str, str], Edit] = {}
    for player in members:
        parameters |= player.parameters
        edges |= player.edges
    for node in steps:
        key = coalition & depends[node.name]
        if key in kept[node.name]:
            continue

        def read(argument: fx.Node, reader: str = node.name) -> Any:
            value = parameters.get(argument.name)
            if value is None:
                value = kept[argument.name][coalition & depends[argument.name]]
            edit = edges.get((argument.name, reader))
            return edit(value) if edit is not None else value

        if len(kept[node.name]) >= _KEPT:
            del kept[node.name][next(iter(kept[node.name]))]
        kept[node.name][key] = node.target(*fx.node.map_arg(node.args, read), **fx.node.map_arg(node.kwargs, read))


def _check(traced: TracedModel, players: list[Player], inputs: Tensor, values: np.ndarray) -> None:
    """Compare some coalitions with runs of the whole graph."""
    reference = traced.run((inputs,))
    for coalition in np.random.default_rng(0).integers(0, len(values), 20):
        chosen = [player for index, player in enumerate(players) if coalition >> (len(players) - 1 - index) & 1]
        parameters = dict(itertools.chain.from_iterable(player.parameters.items() for player in chosen))
        edges = dict(itertools.chain.from_iterable(player.edges.items() for player in chosen))
        expected = -float(
            _divergence(traced.run((inputs,), Edits(edges=edges, parameters=parameters)), reference).mean()
        )
        if abs(expected - values[coalition]) > 1e-4 * max(1.0, abs(expected)):
            raise AssertionError(f"coalition {coalition}: {values[coalition]} instead of {expected}")


def _divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return `[k]`, the KL divergence in nats of every row from the reference's row."""
    log_p, log_q = reference.log_softmax(1), logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
