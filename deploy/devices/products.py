"""The plan that a device has measured, with what belongs to it, as it comes from there: read, checked and put into a
run.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from calib.errors import UserError
from calib.files.storage import Amount, FileRecord, Positive, Record, Sha256, read_record, writing
from deploy.devices.messages import Line, Milliseconds, Name, Ratio, Result, Runtime, ShortHash, Size, check_names
from deploy.runner.hashes import sha256_of
from deploy.runner.product import (
    BUILD_LOG,
    ENGINE_JSON,
    ENGINE_PLAN,
    PRODUCT_SCHEMA,
    TIMING_CACHE,
    link_or_copy,
    replace_directory,
)
from deploy.runner.product_examples import EXAMPLE_PROGRAMS, example_programs
from deploy.runner.trt_log import TRT_RUNTIMES

PRODUCT_FILES = (ENGINE_PLAN, BUILD_LOG, TIMING_CACHE, *EXAMPLE_PROGRAMS)
"""All that a product may hold besides its description: a device names no other files."""
LARGEST_DESCRIPTION_BYTES = 16_000_000
_LARGEST_FILE_BYTES = 16_000_000_000

FileSize = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_FILE_BYTES)]


class GpuRow(Record, frozen=True, kw_only=True):
    """The GPU that a plan was built on; see `deploy.runner.gpu`."""

    name: Name
    sm: Annotated[str, msgspec.Meta(pattern="^sm[0-9]{2,4}$")]
    sm_count: Positive | None
    power_mode: Line | None


class TensorRow(Record, frozen=True, kw_only=True):
    """An input or output: its type in numpy's word, -1 for a free dimension."""

    name: Line
    dtype: Line
    shape: tuple[Size, ...]


class MeasuredRow(Record, frozen=True, kw_only=True):
    """What the plan was measured to take: milliseconds of one call, and the ratio to the float engine with its 95 %
    interval.
    """

    batch: Positive
    clock: Line
    engine_ms: Milliseconds
    float_ms: Milliseconds
    ratio: Ratio
    ratio_interval: tuple[Ratio, Ratio]
    p99_ms: Milliseconds | None


class FileRow(Record, frozen=True, kw_only=True):
    """A file of the product."""

    size_bytes: FileSize
    sha256: Sha256


class ProductFile(FileRecord, frozen=True, kw_only=True):
    """`engine.json` of a product: what its plan is, what it was built from and with, what it takes and gives, and how
    fast it was.

    1. `name` is that of the model: the first 16 digits of its hash with its data file; `onnx_sha256` is that hash where
       it was built.
    2. `gpu` is None for a plan that was built without one. Settings are those of `deploy.runner.trt_build.TrtSettings`.
    3. `files` are all other files beside it, with their hashes.
    """

    VERSION: ClassVar[int] = PRODUCT_SCHEMA
    NAME = ENGINE_JSON
    MADE_BY = "smpq measure"
    name: ShortHash
    machine: Name
    runtime: Runtime
    version: Line
    settings: dict[str, Any]
    onnx_sha256: Sha256
    gpu: GpuRow | None
    flags: tuple[Line, ...]
    build_seconds: Amount
    warnings: tuple[str, ...]
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    plan_sha256: Sha256
    measured: MeasuredRow | None
    files: dict[str, FileRow]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names((self.machine, self.version, *([self.gpu.name] if self.gpu is not None else [])))
        if self.runtime not in TRT_RUNTIMES:
            raise ValueError(f"no plans of {self.runtime} are known")
        if not {ENGINE_PLAN} <= self.files.keys() <= set(PRODUCT_FILES):
            raise ValueError(f"files names others than {', '.join(PRODUCT_FILES)}, or not {ENGINE_PLAN}")
        if self.files[ENGINE_PLAN].sha256 != self.plan_sha256:
            raise ValueError(f"plan_sha256 is not the hash of {ENGINE_PLAN}")


def find_product(directory: Path) -> ProductFile | None:
    """Return the description of a product; None where there is none that is whole and can be read."""
    try:
        product = read_record(directory / ENGINE_JSON, ProductFile)
    except UserError:
        return None
    return product if not damaged_files(directory, product) else None


def damaged_files(directory: Path, product: ProductFile) -> list[str]:
    """Return the names of files that are missing or are not what the description says. A timing cache may have grown
    since.

    The programs have to be those of this version of smpq: nobody should run a text that a device has written.
    """
    ours = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in example_programs(product.runtime).items()}
    return [
        name
        for name, row in product.files.items()
        if name != TIMING_CACHE
        and (_sha256(directory / name) != row.sha256 or ours.get(name, row.sha256) != row.sha256)
    ]


def take_product(source: Path, result: Result, directory: Path) -> ProductFile | None:
    """Put the product at `source` in the place of `directory`; None, and nothing done, where it is not the one of the
    result.
    """
    product = find_product(source)
    if product is None or (product.name, product.plan_sha256) != (result.name, result.plan_sha256):
        return None
    if find_product(directory) != product:
        with writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
            try:
                link_or_copy(source / ENGINE_PLAN, unfinished / ENGINE_PLAN)
                for name in (*product.files, ENGINE_JSON):
                    if name != ENGINE_PLAN:
                        shutil.copyfile(source / name, unfinished / name)
                replace_directory(unfinished, directory)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    return product


def _sha256(file: Path) -> str | None:
    try:
        return sha256_of(file)
    except OSError:
        return None
