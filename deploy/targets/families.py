"""The families of targets: a table each, one JSON file in `deploy/targets/capabilities`; and the devices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from calib.formats.format import Format
from deploy.targets.rules import SCHEMA_VERSION, CapabilityRow

ActivationScheme = Literal["affine", "symmetric"]

_TABLES = Path(__file__).with_name("capabilities")
_EXPORTED_OPSET = 21
_DEVICES = _TABLES / "devices.json"


@dataclass(frozen=True)
class Target:
    """A device and runtime.

    1. `family` names the capability table, and `backend` what builds and opens its engines (`deploy.backends`).
    2. `runtime` is the library that times an engine on a device (`deploy.runner.bench.OPENERS`).
    3. `providers`: the execution providers of ONNX Runtime, first choice first; empty for other runtimes.
    4. `needs_gpu`: an engine runs on an NVIDIA GPU only. `timed`: there is an engine, and its latency counts.
    5. `reference` is the float format of the engine that everything is compared with, and of what stays float in a
       mixed engine.
    6. `activation_scheme`: `affine` is uint8 with a zero point, `symmetric` is int8 with zero point 0.
    7. `quantize_outputs`, `quantize_skips`, `integer_biases` are the rules of `smpq.quantized.plan.QdqRules`.
    8. `compute_capabilities`: GPUs that the engine is for, as in `sm86`: one for each plan, or none for the GPU of the
       machine that builds.
    9. `version`: version of the runtime that the engine is for, None where it does not matter or is not known.
    10. `newest_opset`: the newest ONNX opset that is written for it; a weight is stored in a type of that opset only
        where its kernel wants the type.
    11. `default_choices`: what is offered where nobody names formats. Of each choice a group of layers gets the first
        format that it can have, so that there is one length of blocks for each width.
    12. `description`: what it is, for people.
    13. `attention`: what reads two computed tensors, as the products of attention do, can be quantised.
    """

    name: str
    family: str
    backend: str
    runtime: str
    providers: tuple[str, ...]
    needs_gpu: bool
    timed: bool
    reference: Format
    activation_scheme: ActivationScheme
    quantize_outputs: bool
    quantize_skips: bool
    integer_biases: bool
    newest_opset: int
    default_choices: tuple[tuple[Format, ...], ...]
    compute_capabilities: tuple[str, ...]
    version: str | None
    description: str
    attention: bool = False

    @property
    def default_formats(self) -> tuple[Format, ...]:
        """All formats of the default choices."""
        return tuple(chosen for choice in self.default_choices for chosen in choice)


@dataclass(frozen=True)
class Family:
    """One table: the target with its usual compute capabilities, the versions and GPUs that it is for, the rules.

    1. `oldest` is the first version of the runtime that will do. `packages` hold its Python module: the version that is
       installed is that of the target, where the name has none.
    2. `one_gpu`: a plan is built on the GPU that it is for.
    3. `compute_capabilities` maps a name to what the GPU is called, `since` a name to the first version that knows it.
    """

    target: Target
    versions: tuple[str, ...]
    oldest: str | None
    packages: tuple[str, ...]
    one_gpu: bool
    compute_capabilities: Mapping[str, str]
    since: Mapping[str, str]
    rows: tuple[CapabilityRow, ...]


FAMILIES: dict[str, Family] = {}
"""The tables by name, in the order in which `smpq targets` lists them."""


def add_family(file: Path) -> None:
    """Register the table of a file; its targets can then be named.

    Those of the package are the files of `deploy/targets/capabilities`: a new one only has to be there. A wrong table
    is a bug, hence ValueError.
    """
    data = json.loads(file.read_text("utf-8"))
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{file.name} has schema version {data['schema_version']}, not {SCHEMA_VERSION}")
    described = data["target"]
    name = described["name"]
    target = Target(
        name=name,
        family=name,
        backend=described["backend"],
        runtime=described["runtime"],
        providers=tuple(described["providers"]),
        needs_gpu=described["needs_gpu"],
        timed=described["timed"],
        reference=Format.from_text(described["reference"]),
        activation_scheme=cast("ActivationScheme", described["activation_scheme"]),
        quantize_outputs=described["quantize_outputs"],
        quantize_skips=described["quantize_skips"],
        integer_biases=described["integer_biases"],
        newest_opset=described.get("newest_opset", _EXPORTED_OPSET),
        default_choices=tuple(tuple(map(Format.from_text, text.split("|"))) for text in described["default_formats"]),
        compute_capabilities=tuple(data["compute_capabilities"]["usual"]),
        version=None,
        description=described["description"],
        attention=described.get("attention", False),
    )
    FAMILIES[name] = Family(
        target=target,
        versions=tuple(data["versions"]),
        oldest=data.get("oldest"),
        packages=tuple(data.get("packages", ())),
        one_gpu=data.get("one_gpu", False),
        compute_capabilities=data["compute_capabilities"]["known"],
        since=data["compute_capabilities"]["since"],
        rows=tuple(CapabilityRow.from_json(row) for row in data["rules"]),
    )


def timed_families() -> tuple[Target, ...]:
    """Return the targets whose engines can be timed, one for each family."""
    return tuple(family.target for family in FAMILIES.values() if family.target.timed)


@cache
def devices() -> dict[str, dict[str, Any]]:
    """Return the devices that are targets of their own: name -> family, version, compute capabilities, description."""
    found: dict[str, dict[str, Any]] = json.loads(_DEVICES.read_text("utf-8"))["devices"]
    return found


def _add_packaged() -> None:
    for file in sorted(_TABLES.glob("*.json"), key=lambda file: file.stem):
        if file != _DEVICES:
            add_family(file)
    for name in sorted(FAMILIES, key=lambda name: not FAMILIES[name].target.timed):
        FAMILIES[name] = FAMILIES.pop(name)  # what is for research comes last


_add_packaged()
