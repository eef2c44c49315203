"""The plan that was measured as a directory to carry away: with a description, its build log, its kernel times, and
programs that run it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.runner.experiment import CACHE_DIRECTORY
from deploy.runner.hashes import sha256_of
from deploy.runner.plan_cache import BuiltPlan, find_plan_by_hash
from deploy.runner.product_examples import example_programs
from deploy.runner.trt_timing import timing_cache_file
from deploy.runner.writing import write_json

PRODUCT_SCHEMA = 1
ENGINES_DIRECTORY = "engines"
ENGINE_PLAN = "engine.plan"
ENGINE_JSON = "engine.json"
BUILD_LOG = "build.log"
TIMING_CACHE = "timing.cache"
_FIGURES = ("batch", "clock", "engine_ms", "float_ms", "ratio", "ratio_interval", "p99_ms")


def write_product(directory: Path, result: Mapping[str, Any], machine_name: str) -> Path | None:
    """Write `engines/<name>/` for a result with the plan that it was measured with; None for a result without a plan.

    The plan is the file that the cache of `directory` has, byte by byte. Whoever looks sees all of the new directory,
    or the one before. FileNotFoundError when the cache no longer has the plan, OSError when the directory cannot be
    written.
    """
    if result.get("plan_sha256") is None:
        return None
    cache, target = directory / CACHE_DIRECTORY, directory / ENGINES_DIRECTORY / str(result["name"])
    built = find_plan_by_hash(cache, result["plan_sha256"])
    if built is None:
        raise FileNotFoundError(f"{cache} no longer has the plan")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _fill(unfinished, cache, built)
        write_json(unfinished / ENGINE_JSON, _description(unfinished, built, result, machine_name))
        replace_directory(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def replace_directory(unfinished: Path, target: Path) -> None:
    """Put a directory in the place of another one, if there is one, which is removed; both have the same parent."""
    unfinished.chmod(0o755)  # mkdtemp makes directories that only their owner can enter
    before = unfinished.with_name(f"{unfinished.name}.before")
    if target.exists():
        target.rename(before)
    unfinished.rename(target)
    shutil.rmtree(before, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has none. Neither is ever written to: both are
    replaced as a whole.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _fill(directory: Path, cache: Path, built: BuiltPlan) -> None:
    link_or_copy(cache / f"{built.origin.key}.plan", directory / ENGINE_PLAN)
    (directory / BUILD_LOG).write_text(_log(built), encoding="utf-8")
    timing = timing_cache_file(cache, built.origin)
    if timing.is_file():
        shutil.copyfile(timing, directory / TIMING_CACHE)  # trtexec writes to it
    for name, text in example_programs(built.origin.runtime).items():
        (directory / name).write_text(text, encoding="utf-8")


def _log(built: BuiltPlan) -> str:
    head = [f"{built.origin.runtime} {built.origin.version}, {built.seconds} s, {', '.join(built.flags)}"]
    return "\n".join([*head, *(f"{message.severity}: {message.text}" for message in built.messages)]) + "\n"


def _description(directory: Path, built: BuiltPlan, result: Mapping[str, Any], machine_name: str) -> dict[str, Any]:
    files = {file.name: _file(file) for file in sorted(directory.iterdir())}
    return {
        "schema": PRODUCT_SCHEMA,
        "name": result["name"],
        "machine": machine_name,
        **built.origin.to_json(),
        "flags": list(built.flags),
        "build_seconds": built.seconds,
        "warnings": list(
            dict.fromkeys(message.text.strip() for message in built.messages if message.severity == "WARNING")
        ),
        "inputs": [asdict(tensor) for tensor in built.inputs],
        "outputs": [asdict(tensor) for tensor in built.outputs],
        "plan_sha256": built.sha256,
        "measured": {name: result[name] for name in _FIGURES} if result.get("engine_ms") is not None else None,
        "files": files,
    }


def _file(file: Path) -> dict[str, Any]:
    return {"size_bytes": file.stat().st_size, "sha256": sha256_of(file)}
