"""What a search was asked to do; importing it does not load torch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from msgspec.structs import force_setattr

from calib.choices import ObserverName, RoundingName, WidthRuleName
from calib.declared import (
    NOT_BLANK,
    SEEDS,
    APath,
    Declared,
    Group,
    Interval,
    OneOf,
    Parsed,
    check_declared,
    declared_fields,
)
from calib.errors import UserError
from calib.files.storage import Record
from calib.formats.format import formats_from_text
from calib.sizes import sizes_from_text
from calib.tasks import task_names
from smpq.choices import VALUES
from smpq.problem.pins import pin_from_text
from smpq.solve.effort import EFFORTS, Effort, effort_from_name

LARGEST_BATCH = 10**5
_UNLABELLED = "kl"


class Settings(Record, frozen=True):
    """What the search was asked to do. A run keeps its settings: other settings need another run.

    `formats` is a comma-separated list, '' for the target's own, and is kept as policies spell them;
    `reconstruct_widths` are the iterations of a reconstruction of each width before the search; `samples` calibration
    samples evaluate a policy; `effort` says how much the search may spend, and `evaluations`, where given, what of it
    scoring may; `batch` is the batch size that latency is measured at. UserError names a value that cannot be used.
    """

    task: Annotated[
        str,
        Declared(f"{', '.join(task_names())}, or your own as package.module:object", NOT_BLANK, "--task", Group.WHAT),
    ]
    target: Annotated[
        str,
        Declared(
            "ort-cpu, tensorrt-rtx, jetson-orin, ... (smpq targets lists them)", NOT_BLANK, "--target", Group.WHERE
        ),
    ] = "ort-cpu"
    data: Annotated[
        str | None, Declared("the data the task needs (a directory)", APath(), "--data", Group.WHAT, metavar="PATH")
    ] = None
    weights: Annotated[
        str | None,
        Declared(
            "the weights the task needs (.safetensors or a state_dict)",
            APath(),
            "--weights",
            Group.WHAT,
            metavar="PATH",
        ),
    ] = None
    formats: Annotated[
        str,
        Declared(
            "formats to choose from, e.g. w8a8,w4a16b128,fp32",
            Parsed(formats_from_text, "formats with commas between, as w8a8,w4a16b128,fp32"),
            "--formats",
            Group.WHAT,
            unset="the target's",
        ),
    ] = ""
    pins: Annotated[
        tuple[str, ...],
        Declared(
            "a format that layers must have or not have, as 'head*=float' or 'blocks.[0-3].*!=w4a16'; repeat for "
            "several",
            Parsed(pin_from_text, "a pattern of layers and a format, as 'head*=float'"),
            "--pin",
            Group.WHAT,
        ),
    ] = ()
    compute_capabilities: Annotated[
        tuple[str, ...],
        Declared("compute capability to build for, as sm86; repeat for several", NOT_BLANK, "--sm", Group.WHERE),
    ] = ()
    observer: ObserverName = "mse"
    rounding: RoundingName = "gptq"
    reconstruct_widths: Annotated[
        int | None,
        Declared(
            "before the search, reconstruct the network at each width below 8 bits; steps for each block",
            Interval(1, 10**6),
            "--reconstruct-widths",
            Group.LENGTH,
            unset="not at all",
        ),
    ] = None
    widths: WidthRuleName = "error"
    value: Annotated[str, Declared("what a policy is judged by (kl needs no labels)", OneOf(VALUES), "--value")] = "kl"
    samples: Annotated[
        int, Declared("calibration samples that judge a policy", Interval(1), "--samples", Group.LENGTH)
    ] = 512
    effort: Annotated[str, Declared("how long to search", OneOf(EFFORTS), "--effort", Group.LENGTH)] = "normal"
    evaluations: Annotated[
        int | None,
        Declared("policies that scoring may evaluate", Interval(1), "--evaluations", Group.SELDOM, "by --effort"),
    ] = None
    precision: Annotated[
        float,
        Declared(
            "stop scoring when all standard errors are below this share of the spread; 0: never",
            Interval(0, 1, below=True),
            "--precision",
            Group.SELDOM,
        ),
    ] = 0.0
    seed: Annotated[int, Declared("seed of everything random", SEEDS, "--seed")] = 0
    batch: Annotated[
        int, Declared("batch size of the latency", Interval(1, LARGEST_BATCH), "--batch", Group.SELDOM)
    ] = 1
    shapes: Annotated[
        tuple[str, ...],
        Declared(
            "sizes of an input: the usual ones, which are timed, and the least and most of each axis, as "
            "x=1x3x352x352:1x3x224x224:1x3x512x512; repeat for several",
            Parsed(sizes_from_text, "an input and its sizes, as 'x=1x3x352x352'"),
            "--shape",
            Group.SELDOM,
            unset="those of the calibration batches",
        ),
    ] = ()
    data_free: Annotated[
        bool,
        Declared(
            "take no sample of the task: calibrate on synthetic ones, made from what the network keeps; accuracy is "
            "verified where the task gives evaluation data",
            option="--data-free",
            group=Group.WHAT,
        ),
    ] = False
    attention: Annotated[
        bool,
        Declared(
            "quantise the two products of attention too, as the layer that reads the result (--target simulate)",
            option="--attention",
            group=Group.SELDOM,
        ),
    ] = False
    size_only: Annotated[
        bool,
        Declared(
            "also offer formats that are stored small but computed in float", option="--size-only", group=Group.SELDOM
        ),
    ] = False

    def __post_init__(self) -> None:
        check_declared(self)
        if self.formats:  # one spelling, so that int8 goes on with a run that was asked for w8a8
            force_setattr(self, "formats", ",".join(map(str, formats_from_text(self.formats))))
        if self.data_free and self.value != _UNLABELLED:
            raise UserError(f"--value {self.value} needs labels, which --data-free has none of: use {_UNLABELLED}")

    @property
    def spending(self) -> Effort:
        """What the search may spend."""
        effort = effort_from_name(self.effort)
        return effort if self.evaluations is None else replace(effort, scoring=self.evaluations)


def usual_directory(settings: Settings) -> Path:
    """Return where a run goes that names no directory: `runs/<task>-<target>`, the same one each time."""
    return Path("runs") / re.sub(r"[^A-Za-z0-9_.]+", "-", f"{settings.task}-{settings.target}")


def options_of(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the options that ask for these settings, each with its values; those at their defaults are left out."""
    found = {}
    for name, field in declared_fields(Settings).items():
        value, option = getattr(settings, name), field.declared.option
        if option is not None and value != field.default:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            found[option] = tuple(map(str, values))
    return found
