"""The promise, checked: a network becomes an engine that agrees with the user's eager module, or it is refused with one
message.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calib.errors import UserError
from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.stages.making import build, export, verify
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.problem.policy import Policy
from tests.promise.bounds import Noise
from tests.promise.comparing import Engines, WrongError, compare_engines, compare_quantised
from tests.promise.drawing import Draw
from tests.promise.networks import Generated, Recipe, generated
from tests.promise.offered import Offer, offer
from tests.promise.oracle import ask, own

LONGEST_MESSAGE = 700
"""Characters: a message is read in a terminal."""

_FORMATS = ("w8a8,fp32", "w8a8,w4a16b32,fp32", "w8a8,w8,fp32", "w8,w4,fp32", "fp32", "w8a8,w4,w4a16b16", "w7a8,w8a8")
_SIMULATED = ("w3a8,w8a8", "w2,w4a4,fp32", "w5a6,w8a8,fp32")


@dataclass(frozen=True)
class Outcome:
    """`agrees`, `refused`, or a failure: `crash` (any other exception), `wrong` (other numbers), `message` (not one
    readable line, or something else printed besides).

    `detail` is the message or what is wrong, `stage` where it happened, `seconds` the CPU time, `printed` what the
    process printed.
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


def check(network: Generated, directory: Path | None = None) -> Outcome:
    """Take a network through trace, plan, export, engine and verification, as `smpq run` does without the search, and
    compare.

    1. The float engine with the eager module: every value within ten times what errors of float32 in every operator
       change.
    2. The lowered file, computed as written, with the fake-quantised model: equal but for flipped roundings, which at
       least half of the outputs do not have.
    3. Beyond that, root mean squares in units of what a whole step of error in every quantised tensor and weight
       changes: the lowered file and the fake-quantised model 0.25 (or one flipped rounding in every tensor, where that
       is more), the engine and the fake-quantised model 1 (its kernels round sums of integers in their own way), the
       fake-quantised model and the eager one 4 on the calibration data (elsewhere it may clip).
    4. All of it for each sample alone and for a batch, where the eager module takes it. No value is NaN where the eager
       one is not.
    5. Where inputs have several sizes: calibration has two of them, and what is compared lies between.
    6. A module that answers differently to equal inputs agrees with nothing: only a refusal is right.
    """
    start = time.process_time()
    stage = _Stage()
    printed: list[str] = []
    try:
        with tempfile.TemporaryDirectory(dir=directory) as scratch, _captured() as printed:
            _keep_promise(network, Path(scratch), stage)
        kind, detail = ("message", f"prints {printed[0]}") if printed else ("agrees", "")
    except UserError as error:
        detail = str(error)
        readable = detail.strip() and "\n" not in detail and len(detail) <= LONGEST_MESSAGE and not printed
        kind = "refused" if readable else "message"
    except WrongError as error:
        kind, detail = "wrong", str(error)
    except Exception as error:  # noqa: BLE001 - any other exception is a failure, whatever its type
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][
            -6:
        ]
        kind, detail = "crash", f"{type(error).__name__}: {str(error)[:500]} ({' > '.join(frames)})"
    return Outcome(kind, stage.name, detail, time.process_time() - start, tuple(printed))


class _Stage:
    name = "oracle"


def _keep_promise(network: Generated, scratch: Path, stage: _Stage) -> None:
    draw = Draw(network.recipe.seed + 7)
    sizes = draw((4, 4, 3), (2, 2, 2), (5, 3), (8,), (1, 1, 1, 1), (4, 4, 4))
    calibration = [network.inputs(count, 100 + index, longer=index % 2) for index, count in enumerate(sizes)]
    count = draw(2, 3, 4, 5)
    together = network.inputs(count, 1, longer=0.5)
    batches = [*(tuple(tensor[index : index + 1] for tensor in together) for index in range(count)), together]
    oracle = ask(network.module, [*batches, *calibration])
    simulate = draw.chance(0.1)
    settings = Settings(
        task=offer(Offer(network.module, calibration, [network.inputs(4, 2), network.inputs(3, 3, longer=1)])),
        target="simulate" if simulate else "ort-cpu",
        formats=draw(*_SIMULATED) if simulate else draw(*_FORMATS),
        observer=draw("mse", "minmax", "percentile"),
        rounding=draw("gptq", "nearest"),
        value="loss",
        samples=8,
        batch=draw(1, 1, 1, 2, 4),
    )
    stage.name = "prepare"
    with open_run(scratch / "run", Progress(), settings) as workspace:
        policy = _policy(workspace, draw)
        stage.name = "calibrate"
        _ = workspace.fake_quantizer
        stage.name = "export"
        export(workspace, policy)
        stage.name = "build"
        build(workspace, policy)
        stage.name = "verify"
        verify(workspace, policy)
        stage.name = "compare"
        if oracle.unstable is not None:
            raise WrongError(f"accepted, although the module is not a function: {oracle.unstable}")
        tests, known = oracle.outputs[: len(batches)], oracle.outputs[len(batches) :]
        engines = Engines(workspace, policy)
        taken = [
            own(batch)
            for batch, expected in zip((*batches, *calibration), oracle.outputs, strict=True)
            if expected is not None and engines.take(batch)
        ]
        noise = Noise(workspace.traced, taken, seed=0)
        for batch, expected in zip(batches, tests, strict=True):
            if expected is not None and engines.take(batch):
                compare_engines(engines, own(batch), expected, noise)
        engines.check_flips()
        for batch, expected in zip(calibration, known, strict=True):
            if expected is not None:
                compare_quantised(engines, own(batch), expected, noise)


def _policy(workspace: Workspace, draw: Draw) -> Policy:
    space = workspace.space
    uniform = draw.chance(0.3)
    formats = {
        group.name: space.formats[group.name][0] if uniform else draw(*space.formats[group.name])
        for group in space.groups
    }
    return Policy(formats, frozenset(join.name for join in space.joins if draw.chance(0.3)))


_OPERATOR_WARNS = re.compile(r"\[W\S* \S+ \w+\.cpp:\d+\] Warning: ")
"""A warning of an operator of the user's own module, as of a deviation of one value: torch tells it in eager mode as
well.
"""


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
            lines = file.read().decode(errors="replace").splitlines()
            printed += [line for line in lines if not _OPERATOR_WARNS.match(line)]


def smallest(recipe: Recipe, kind: str) -> tuple[Recipe, Outcome]:
    """Take out of a recipe what is not needed for the same kind of failure."""
    for fewer in recipe.smaller():
        outcome = check(generated(fewer))
        if outcome.kind == kind:
            return smallest(fewer, kind)
    return recipe, check(generated(recipe))
