"""Whether engine, lowered file, fake-quantised model and eager module agree, each with the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from calib.formats.format import FP32
from calib.network.graph import TracedModel
from deploy.backends import onnxruntime as ort_backend
from deploy.run.workspace import Workspace
from smpq.problem.policy import Policy
from tests.promise.bounds import Noise, rms
from tests.promise.oracle import Inputs, tensors

_FLIPS = 0.25
_ROUNDINGS = 4.0
"""Shares of the change by whole steps of error: a few flipped roundings, and all roundings. Half a step each, what
clipping adds, and errors that go one way where values are alike: networks of 2-bit weights alone reach 2.5.
"""


class WrongError(Exception):
    """The tool said yes to something it should not have."""


class Engines:
    """The float engine, the lowered file as it is written, and the engine; and the plan that they carry out."""

    def __init__(self, workspace: Workspace, policy: Policy) -> None:
        run, names = workspace.run, workspace.backend.names
        self.traced, self.units = workspace.traced, workspace.space.units
        self.plan = workspace.plan(policy)
        self.edits = workspace.fake_quantizer.edits(self.plan)
        self.is_float = all(chosen == FP32 for chosen in policy.formats.values())
        exact = run.file("exact.onnx")
        ort_backend.build_engine(run.file(names.model), exact, exact=True)
        files = {"float": run.file(names.float_engines[""]), "exact": exact, "engine": run.file(names.engines[""])}
        self._engines = {name: ort_backend.load_engine(path) for name, path in files.items()}
        self.varying = _varying(self.traced)
        self.flipped = self.compared = 0

    def take(self, batch: Inputs) -> bool:
        return self.traced.dynamic_batch or len(batch[0]) == len(self.traced.example[0])

    def run(self, batch: Inputs) -> dict[str, list[Tensor]]:
        arrays = [tensor.numpy() for tensor in batch]
        return {
            name: [torch.from_numpy(array) for array in engine.run(arrays)] for name, engine in self._engines.items()
        }

    def check_flips(self) -> None:
        """Roundings that float errors flip are rare: at least half of the outputs have none."""
        if self.flipped * 2 > self.compared:
            raise WrongError(
                f"the lowered file differs from the fake-quantised model in {self.flipped} of {self.compared} outputs"
            )

    def fake(self, batch: Inputs) -> list[Tensor]:
        return tensors(self.traced.run(batch, self.edits))


def compare_engines(engines: Engines, batch: Inputs, expected: list[Tensor], noise: Noise) -> None:
    slack, found, count = noise.of_floats(batch), engines.run(batch), len(batch[0])
    _check_float("the float engine", found["float"], expected, slack, count)
    if engines.is_float:
        _check_float("the engine", found["engine"], expected, slack, count)
        return
    fake = engines.fake(batch)
    steps = noise.of_formats(batch, engines.plan, engines.units)
    for index in _comparable(expected, engines.varying):
        engines.compared += 1
        exact, engine, wanted = found["exact"][index], found["engine"][index], fake[index]
        engines.flipped += bool(((exact - wanted).abs() > _allowed(wanted, slack[index])).any())
        floor = rms(_allowed(wanted, slack[index]))
        where = f"output {index} at batch {count}"
        few = _FLIPS * steps[index] + floor
        if _error(exact, wanted) > few:
            few = torch.maximum(few, noise.of_flips(batch, engines.plan)[index] + floor)
        _check_rms("the lowered file and the fake-quantised model", exact, wanted, few, where)
        whole = steps[index] + floor
        if _error(engine, wanted) > whole:
            whole = torch.maximum(whole, noise.of_formats(batch, engines.plan, engines.units, many=True)[index] + floor)
        _check_rms("the engine and the fake-quantised model", engine, wanted, whole, where)


def compare_quantised(engines: Engines, batch: Inputs, expected: list[Tensor], noise: Noise) -> None:
    fake, steps, slack = (
        engines.fake(batch),
        noise.of_formats(batch, engines.plan, engines.units),
        noise.of_floats(batch),
    )
    for index in _comparable(expected, engines.varying):
        bound = _ROUNDINGS * steps[index] + rms(_allowed(expected[index], slack[index]))
        _check_rms(
            "the fake-quantised and the eager model",
            fake[index],
            expected[index],
            bound,
            f"output {index} on calibration data",
        )


def _varying(traced: TracedModel) -> set[int]:
    """The outputs whose length depends on values: a rounding may select another number of them, so only the float
    engine is compared.
    """
    nodes = [leaf for leaf in traced.output.args[0] if isinstance(leaf, fx.Node)]  # type: ignore[union-attr]
    shapes = [getattr(node.meta.get("val"), "shape", ()) for node in nodes]
    return {index for index, shape in enumerate(shapes) if any(str(size).startswith("u") for size in shape)}


def _comparable(expected: Sequence[Tensor], varying: set[int]) -> list[int]:
    """The outputs for which a root mean square means something."""
    return [
        index
        for index, values in enumerate(expected)
        if index not in varying and values.is_floating_point() and values.numel() and bool(torch.isfinite(values).all())
    ]


def _check_float(
    what: str, found: Sequence[Tensor], expected: Sequence[Tensor], slack: Sequence[Tensor], count: int
) -> None:
    if len(found) != len(expected):
        raise WrongError(f"{what} has {len(found)} outputs, the eager module {len(expected)}")
    for index, (result, wanted, change) in enumerate(zip(found, expected, slack, strict=True)):
        where = f"output {index} of {what} at batch {count}"
        if result.shape != wanted.shape or result.dtype != wanted.dtype:
            raise WrongError(f"{where} is {result.dtype} {list(result.shape)}, not {wanted.dtype} {list(wanted.shape)}")
        same = result == wanted
        if wanted.is_floating_point():
            same |= (result - wanted).abs() <= _allowed(wanted, change)
            same |= result.isnan() & wanted.isnan()
        elif bool((change > 0).any()):
            continue  # a class or a comparison on a knife's edge
        if not bool(same.all()):
            worst = (result.double() - wanted.double()).abs()
            raise WrongError(
                f"{where} is off by {float(worst.max()):.3g} in {int((~same).sum())} of {same.numel()} values (rms of "
                f"the output {float(rms(wanted.double())):.3g})"
            )


def _allowed(wanted: Tensor, change: Tensor) -> Tensor:
    """Ten times the change, and 1e-5 of the values' size."""
    return 10 * change.nan_to_num(0.0) + 1e-5 * (wanted.abs() + rms(wanted)) + 1e-30


def _check_rms(what: str, found: Tensor, wanted: Tensor, bound: Tensor, where: str) -> None:
    if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(wanted).all()):
        raise WrongError(f"{what}: {where} is not finite")
    error = _error(found, wanted)
    if error > bound:
        raise WrongError(
            f"{what}: {where} is off by {float(error):.3g}, bound {float(bound):.3g}, rms {float(rms(wanted)):.3g}"
        )


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    return rms((found - wanted).double())
