"""The promise, checked: a network becomes an engine that agrees with the user's eager module, or it is refused with one message."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.onnx._internal.exporter import _registration

from calib.errors import UserError
from calib.formats import FP32
from deploy.backends import onnxruntime as ort_backend
from deploy.engines import engine_names
from deploy.pipeline import open_run
from deploy.prepare import Prepared
from deploy.progress import Progress
from deploy.run import Settings
from deploy.stages import build, export, verify
from smpq.policy import Policy
from tests.promise.bounds import Noise, rms
from tests.promise.drawing import Draw
from tests.promise.networks import Generated
from tests.promise.offered import Offer, offer
from tests.promise.oracle import Inputs, Oracle, ask, own, tensors

LONGEST_MESSAGE = 700
"""Characters: a message is read in a terminal."""

_FORMATS = ("w8a8,fp32", "w8a8,w4a16b32,fp32", "w8a8,w8,fp32", "w8,w4,fp32", "fp32", "w8a8,w4,w4a16b16", "w7a8,w8a8")
_SIMULATED = ("w3a8,w8a8", "w2,w4a4,fp32", "w5a6,w8a8,fp32")


_FLIPS = 0.25
_ROUNDINGS = 2.0
"""Shares of the change by whole steps of error: a few flipped roundings, and all roundings (half a step each, and what clipping adds)."""


@dataclass(frozen=True)
class Outcome:
    """`agrees`, `refused`, or a failure: `crash` (any other exception), `wrong` (other numbers), `message` (not one readable line).

    `detail` is the message or what is wrong, `stage` where it happened.
    """

    kind: str
    stage: str
    detail: str
    seconds: float
    printed: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self.kind in ("agrees", "refused")


RATIOS=[]
class _WrongError(Exception):
    """The tool said yes to something it should not have."""


def check(network: Generated, directory: Path | None = None) -> Outcome:
    """Take a network through trace, plan, export, engine and verification, as `smpq run` does without the search, and compare.

    1. The float engine with the eager module: every value within ten times what errors of float32 in every operator change.
    2. The lowered file, computed as written, with the fake-quantised model: equal but for flipped roundings, which at least half of the
       outputs do not have.
    3. Beyond that, root mean squares in units of what a whole step of error in every quantised tensor and weight changes: the lowered
       file and the fake-quantised model 0.25, the engine and the fake-quantised model 1 (its kernels round sums of integers in their own
       way), the fake-quantised model and the eager one 2 on the calibration data (elsewhere it may clip).
    4. All of it for each sample alone and for a batch, where the eager module takes it. No value is NaN where the eager one is not.
    5. A module that answers differently to equal inputs agrees with nothing: only a refusal is right.
    """
    start = time.process_time()
    stage = _Stage()
    printed: list[str] = []
    try:
        with tempfile.TemporaryDirectory(dir=directory) as scratch, _captured() as printed:
            _keep_promise(network, Path(scratch), stage)
        kind, detail = "agrees", ""
    except UserError as error:
        detail = str(error)
        kind = "refused" if detail.strip() and "\n" not in detail and len(detail) <= LONGEST_MESSAGE else "message"
    except _WrongError as error:
        kind, detail = "wrong", str(error)
    except Exception as error:  # noqa: BLE001 - any other exception is a failure, whatever its type
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][-6:]
        kind, detail = "crash", f"{type(error).__name__}: {str(error)[:500]} ({' > '.join(frames)})"
    return Outcome(kind, stage.name, detail, time.process_time() - start, tuple(printed))


class _Stage:
    name = "oracle"


def _keep_promise(network: Generated, scratch: Path, stage: _Stage) -> None:
    draw = Draw(network.recipe.seed + 7)
    sizes = draw((4, 4, 3), (2, 2, 2), (5, 3), (8,), (1, 1, 1, 1), (4, 4, 4))
    calibration = [network.inputs(count, 100 + index) for index, count in enumerate(sizes)]
    count = draw(2, 3, 4, 5)
    together = network.inputs(count, 1)
    batches = [*(tuple(tensor[index : index + 1] for tensor in together) for index in range(count)), together]
    oracle = ask(network.module, [*batches, *calibration])
    simulate = draw.chance(0.1)
    settings = Settings(
        task=offer(Offer(network.module, calibration, [network.inputs(4, 2), network.inputs(3, 3)])),
        target="simulate" if simulate else "ort-cpu",
        formats=draw(*_SIMULATED) if simulate else draw(*_FORMATS),
        observer=draw("mse", "minmax", "percentile"),
        rounding=draw("gptq", "nearest"),
        value="loss",
        samples=8,
        batch=draw(1, 1, 1, 2, 4),
    )
    stage.name = "prepare"
    with open_run(scratch / "run", Progress(), settings) as prepared:
        policy = _policy(prepared, draw)
        stage.name = "calibrate"
        _ = prepared.fake_quantizer
        stage.name = "export"
        export(prepared, policy)
        stage.name = "build"
        build(prepared, policy)
        stage.name = "verify"
        verify(prepared, policy)
        stage.name = "compare"
        if oracle.unstable is not None:
            raise _WrongError(f"accepted, although the module is not a function: {oracle.unstable}")
        tests, known = oracle.outputs[: len(batches)], oracle.outputs[len(batches) :]
        engines = _Engines(prepared, policy)
        noise = Noise(prepared.traced, [own(batch) for batch in (*calibration, *batches) if engines.take(batch)], seed=0)
        for batch, expected in zip(batches, tests, strict=True):
            if expected is not None and engines.take(batch):
                _compare_engines(engines, own(batch), expected, noise)
        if engines.flipped * 2 > engines.compared:
            raise _WrongError(f"the lowered file differs from the fake-quantised model in {engines.flipped} of {engines.compared} outputs")
        for batch, expected in zip(calibration, known, strict=True):
            if expected is not None:
                _compare_quantised(engines, own(batch), expected, noise)


def _policy(prepared: Prepared, draw: Draw) -> Policy:
    space = prepared.space
    uniform = draw.chance(0.3)
    formats = {group.name: space.formats[group.name][0] if uniform else draw(*space.formats[group.name]) for group in space.groups}
    return Policy(formats, frozenset(join.name for join in space.joins if draw.chance(0.3)))


class _Engines:
    """The float engine, the lowered file as it is written, and the engine; and the plan that they carry out."""

    def __init__(self, prepared: Prepared, policy: Policy) -> None:
        run, names = prepared.run, engine_names(prepared.target)
        self.traced, self.units = prepared.traced, prepared.space.units
        self.plan = prepared.plan(policy)
        self.edits = prepared.fake_quantizer.edits(self.plan)
        self.is_float = all(chosen == FP32 for chosen in policy.formats.values())
        exact = run.file("exact.onnx")
        ort_backend.build_engine(run.file(names.model), exact, exact=True)
        files = {"float": run.file(names.float_engines[""]), "exact": exact, "engine": run.file(names.engines[""])}
        self._engines = {name: ort_backend.load_engine(path) for name, path in files.items()}
        self.flipped = self.compared = 0

    def take(self, batch: Inputs) -> bool:
        return self.traced.dynamic_batch or len(batch[0]) == len(self.traced.example[0])

    def run(self, batch: Inputs) -> dict[str, list[Tensor]]:
        arrays = [tensor.numpy() for tensor in batch]
        return {name: [torch.from_numpy(array) for array in engine.run(arrays)] for name, engine in self._engines.items()}

    def fake(self, batch: Inputs) -> list[Tensor]:
        return tensors(self.traced.run(batch, self.edits))


def _compare_engines(engines: _Engines, batch: Inputs, expected: list[Tensor], noise: Noise) -> None:
    slack, found, count = noise.of_floats(batch), engines.run(batch), len(batch[0])
    _check_float("the float engine", found["float"], expected, slack, count)
    if engines.is_float:
        _check_float("the engine", found["engine"], expected, slack, count)
        return
    fake = engines.fake(batch)
    steps = noise.of_formats(batch, engines.plan, engines.units)
    for index in _comparable(expected):
        engines.compared += 1
        engines.flipped += bool(((found["exact"][index] - fake[index]).abs() > _allowed(fake[index], slack[index])).any())
        floor = rms(_allowed(fake[index], slack[index]))
        where = f"output {index} at batch {count}"
        _check_rms("the lowered file and the fake-quantised model", found["exact"][index], fake[index], _FLIPS * steps[index] + floor, where)
        _check_rms("the engine and the fake-quantised model", found["engine"][index], fake[index], steps[index] + floor, where)


def _compare_quantised(engines: _Engines, batch: Inputs, expected: list[Tensor], noise: Noise) -> None:
    fake, steps, slack = engines.fake(batch), noise.of_formats(batch, engines.plan, engines.units), noise.of_floats(batch)
    for index in _comparable(expected):
        bound = _ROUNDINGS * steps[index] + rms(_allowed(expected[index], slack[index]))
        _check_rms("the fake-quantised and the eager model", fake[index], expected[index], bound, f"output {index} on calibration data")


def _comparable(expected: Sequence[Tensor]) -> list[int]:
    """The outputs for which a root mean square means something."""
    return [
        index for index, values in enumerate(expected) if values.is_floating_point() and values.numel() and bool(torch.isfinite(values).all())
    ]


def _check_float(what: str, found: Sequence[Tensor], expected: Sequence[Tensor], slack: Sequence[Tensor], count: int) -> None:
    if len(found) != len(expected):
        raise _WrongError(f"{what} has {len(found)} outputs, the eager module {len(expected)}")
    for index, (result, wanted, change) in enumerate(zip(found, expected, slack, strict=True)):
        where = f"output {index} of {what} at batch {count}"
        if result.shape != wanted.shape or result.dtype != wanted.dtype:
            raise _WrongError(f"{where} is {result.dtype} {list(result.shape)}, not {wanted.dtype} {list(wanted.shape)}")
        same = result == wanted
        if wanted.is_floating_point():
            same |= (result - wanted).abs() <= _allowed(wanted, change)
            same |= result.isnan() & wanted.isnan()
        elif bool((change > 0).any()):
            continue  # a class or a comparison on a knife's edge
        if not bool(same.all()):
            worst = (result.double() - wanted.double()).abs()
            raise _WrongError(f"{where} is off by {float(worst.max()):.3g} in {int((~same).sum())} of {same.numel()} values (rms of the output {float(rms(wanted.double())):.3g})")


def _allowed(wanted: Tensor, change: Tensor) -> Tensor:
    """Ten times the change, and 1e-5 of the values' size."""
    return 10 * change.nan_to_num(0.0) + 1e-5 * (wanted.abs() + rms(wanted)) + 1e-30


def _check_rms(what: str, found: Tensor, wanted: Tensor, bound: Tensor, where: str) -> None:
    if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(wanted).all()):
        raise _WrongError(f"{what}: {where} is not finite")
    error = rms((found - wanted).double())
    RATIOS.append((what, float(error / bound) if bound > 0 else -1))
    if error > bound:
        raise _WrongError(f"{what}: {where} is off by {float(error):.3g}, bound {float(bound):.3g}, rms {float(rms(wanted)):.3g}")


@contextmanager
def _captured() -> Iterator[list[str]]:
    """Collect what anything in this process prints, C++ included."""
    printed: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield printed
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(kept, 1):
                os.dup2(saved, number)
                os.close(saved)
            file.seek(0)
            printed += file.read().decode(errors="replace").splitlines()


def exporter_kept() -> None:
    """Have torch make its table of ONNX functions once and not for each export, which is a third of the time."""
    made = _registration.ONNXRegistry.from_torchlib.__func__
    kept: Any = functools.cache(lambda opset: made(_registration.ONNXRegistry, opset))
    _registration.ONNXRegistry.from_torchlib = staticmethod(lambda opset_version: kept(opset_version))
