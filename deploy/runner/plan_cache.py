"""Plans that were built, kept in a directory, each under what it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.runner.gpu import Gpu
from deploy.runner.trt_log import Message
from deploy.runner.writing import write_bytes

PLAN_SCHEMA = 2
"""Goes up when plans are built in another way: older ones, and their kernel times, are then left alone."""


@dataclass(frozen=True)
class PlanTensor:
    """An input or output of a plan: its type in numpy's word, and its shape with -1 for a free dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Origin:
    """What a plan was built from: two plans of the same origin are the same to whoever runs them.

    `settings` are those of `deploy.runner.trt_build.TrtSettings` as plain values, `onnx_sha256` is the hash of the
    model, and `gpu` is None where the machine that built had none.
    """

    runtime: str
    version: str
    settings: Mapping[str, Any]
    onnx_sha256: str
    gpu: Gpu | None

    @property
    def key(self) -> str:
        """A name for files about it."""
        return hashlib.sha256(json.dumps([PLAN_SCHEMA, self.to_json()], sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Origin:
        """Read back `to_json`."""
        return cls(**{**data, "gpu": Gpu(**data["gpu"]) if data["gpu"] is not None else None})


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine, and what is known of its build.

    1. `seconds` is how long the build took, `flags` are the builder flags that were set.
    2. `messages` are those of the builder that matter.
    3. `inputs` and `outputs` are those of the network.
    4. `timing_cache_sha256` is the hash of the timing cache that the build left behind, None where there is none.
    5. `from_cache`: the same had been built before.
    """

    content: bytes
    origin: Origin
    seconds: float
    flags: tuple[str, ...]
    messages: tuple[Message, ...]
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    timing_cache_sha256: str | None
    from_cache: bool

    @property
    def sha256(self) -> str:
        """The hash of the plan."""
        return hashlib.sha256(self.content).hexdigest()


def find_plan(cache: Path, origin: Origin) -> BuiltPlan | None:
    """Return the plan of an earlier build; None when it is not there in full."""
    return _read_plan(cache / f"{origin.key}.json")


def find_plan_by_hash(cache: Path, sha256: str) -> BuiltPlan | None:
    """Return the plan with a hash, the one that was built last where several have it; None when there is none."""
    for file in sorted(cache.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            known = json.loads(file.read_text("utf-8")).get("sha256")
        except (OSError, ValueError, AttributeError):
            continue
        if known == sha256:
            return _read_plan(file)
    return None


def keep_plan(cache: Path, built: BuiltPlan) -> None:
    """Keep a plan under its origin."""
    file = cache / f"{built.origin.key}.json"
    kept = {field: getattr(built, field) for field in ("seconds", "flags", "messages", "timing_cache_sha256")}
    tensors = {
        "inputs": [asdict(tensor) for tensor in built.inputs],
        "outputs": [asdict(tensor) for tensor in built.outputs],
    }
    write_bytes(file.with_suffix(".plan"), built.content)
    write_bytes(
        file, json.dumps({"sha256": built.sha256, "origin": built.origin.to_json(), **kept, **tensors}).encode()
    )


def _read_plan(file: Path) -> BuiltPlan | None:
    try:
        kept = json.loads(file.read_text("utf-8"))
        content = file.with_suffix(".plan").read_bytes()
        if hashlib.sha256(content).hexdigest() != kept.pop("sha256"):
            return None
        return BuiltPlan(
            content=content,
            origin=Origin.from_json(kept.pop("origin")),
            flags=tuple(kept.pop("flags")),
            messages=tuple(Message(*entry) for entry in kept.pop("messages")),
            inputs=_tensors(kept.pop("inputs")),
            outputs=_tensors(kept.pop("outputs")),
            from_cache=True,
            **kept,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _tensors(entries: Any) -> tuple[PlanTensor, ...]:
    return tuple(PlanTensor(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in entries)
