"""Traces and float models of the tiny networks, made once in a process: hundreds of commands begin with them, and they
are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn

from calib.network import graph
from calib.network.tracing import Program
from calib.network.units import Unit
from calib.sizes import InputSizes
from deploy.run import float_onnx
from tests import joined_task, linear_task, tiny_task
from tests.smpq import problems, supernets, tunable

PURE = (
    tiny_task.Net, tiny_task.Smooth, tiny_task.Overflowing, tiny_task.Labels, joined_task.Joined, tunable.Normed,
    linear_task.Network, problems.Residual, supernets.Net,
)  # fmt: skip
"""Networks whose `forward` depends on nothing but their weights and the input; so do those that say `pure = True`."""


def _pure(model: nn.Module) -> bool:
    return type(model) in PURE or getattr(type(model), "pure", False)


@contextmanager
def traced_once() -> Iterator[None]:
    """Keep the first trace and the first export of each network of `PURE` for as long as the context is open."""
    with (
        mock.patch.object(graph, "export_program", _Traces(graph.export_program)),
        mock.patch.object(float_onnx, "export_float", _Exports()),
    ):
        yield


class _Traces:
    """Gives copies of the first trace of a network, with the parameters of the network that is asked for."""

    def __init__(self, trace: Callable[..., Program]) -> None:
        self._trace = trace
        self._kept: dict[Any, Program] = {}

    def __call__(
        self,
        model: nn.Module,
        example: tuple[Tensor, ...],
        sizes: Iterable[int] = (),
        *,
        free: bool = True,
        inputs: InputSizes | None = None,
    ) -> Program:
        sizes = tuple(sizes)
        if not _pure(model) or model.training or _several_sizes(inputs):
            return self._trace(model, example, sizes, free=free, inputs=inputs)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        shapes = tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in (*example, *state.values()))
        key = (type(model), tuple(map(repr, model.modules())), shapes, frozenset(sizes), free)
        if key not in self._kept:
            self._kept[key] = self._trace(copy.deepcopy(model), example, sizes, free=free)
        program, is_free = self._kept[key]
        program = copy.deepcopy(program)
        assert program.state_dict.keys() == state.keys()
        program.state_dict.update(state)
        return program, is_free


def _several_sizes(inputs: InputSizes | None) -> bool:
    return inputs is not None and inputs.any_free


class _Exports:
    """Writes the first file again that was made of a network; the fingerprint tells graph and weights."""

    def __init__(self) -> None:
        self._export = float_onnx.export_float
        self._kept: dict[Any, bytes] = {}

    def __call__(self, traced: graph.TracedModel, units: Sequence[Unit], path: Path, fingerprint: str = "") -> None:
        key = (type(traced.module), traced.inputs, tuple(unit.path for unit in units), fingerprint)
        if _pure(traced.module) and fingerprint and key in self._kept:
            path.write_bytes(self._kept[key])
            return
        self._export(traced, units, path, fingerprint)
        if _pure(traced.module) and fingerprint:
            self._kept[key] = path.read_bytes()
