"""Changes of the messages of devices: of each value, of the order and nesting, and of the text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from calib.errors import UserError
from calib.files.storage import record_from_text
from deploy.devices.bundle import keep_asked, read_results, write_bundle
from deploy.devices.messages import Described, DeviceResults
from deploy.runner.errors import DeviceError
from deploy.runner.experiment import read_experiment, read_results_file
from deploy.runner.main import run_experiment
from tests.deploy.board import kernel
from tests.deploy.experiments import broken_candidate, experiment

REPLACEMENTS = (
    None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, -0.5, 1e-320, 1e308, "", "x", "0" * 16, "\x1b[2J", "x" * 100_000,
    [], {}, [0], {"x": 0},
)  # fmt: skip
REASONS = {
    r"\.(state|hardware)\b": "clocks, temperatures and what the device is are information; "
    "what slowed it down follows from two readings",
    r"\.notes\b": "why a part of the description is missing is known on the device only",
    r"\.versions\b": "versions are information; what they are worth is up to the device",
    r"\.machine$": "a device may call itself as it likes: results are kept under that name",
    r"\.(build_seconds|clock|p99_ms|enqueue_ms|hot_ms|cold_ms)$": "it is shown and used for nothing, "
    "and no other figure depends on it",
    r"\.layers\b": "what the runtime made of each layer is shown, and only the runtime knows it",
    r"\.(failed|nodes)\b": "the words of a refusal are the runtime's; nodes that the model lacks are not blamed",
    r"\.cause$": "why a candidate failed is known on the device only",
    r"\.ratio_interval\[\d\]$": "the end is where another bootstrap of the same rounds may put it",
    r"\.results$|\.results\[\d+\]$": "a result that is missing is asked for again",
    r"\.(key|cause|machine)$|\.versions\b": "the runner measures again what it does not recognise",
    r"\.label$": "a line for people",
    r"\.settings\b": "settings belong to the key of a result, which changes with them",
    r"\.(seed|inputs|fingerprint|batch|calls|singles|sets|seconds|rounds|round_ms|name|runtime|sha256|model|float)$"
    r"|\.protocol$|\.candidates\b|\.float\b":
    "what is asked for belongs to the key of a result, which changes with it",
    r"\.python(\[\d\])?$": "a version that is not below 3.10 is as good as another",
}  # fmt: skip
"""Why a change of what is at a place may be accepted though it changes something."""


class Message(NamedTuple):
    """A good message, how it is read, and what of it has an effect. The reader raises UserError or DeviceError."""

    name: str
    content: bytes
    read: Callable[[bytes], Any]


class Mutation(NamedTuple):
    """A changed message: what was changed where, and its content."""

    kind: str
    place: str
    content: bytes


def messages(directory: Path) -> list[Message]:
    """Return the messages of an experiment with three candidates, of which one is refused, and one tells of its
    layers.
    """
    wanted = experiment(directory / "models", (4, 32))
    wanted = replace(wanted, candidates=(*wanted.candidates, broken_candidate(directory)))
    bundle = directory / "bundle"
    write_bundle(wanted, bundle)
    keep_asked(wanted, directory)
    found = run_experiment(bundle, str)
    found["results"][0]["layers"] = [kernel("first")]
    described = {"machine": found["machine"]}

    def measurements(content: bytes) -> Any:
        return _effect(read_results(_written(directory / "changed.json", content), directory))

    def on_device(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        def reading(content: bytes) -> Any:
            file = bundle / name
            before = file.read_bytes()
            try:
                return read(_written(file, content))
            finally:
                file.write_bytes(before)

        return reading

    return [
        Message("measurements.json, here", json.dumps(found).encode(), measurements),
        Message("the name of the machine", json.dumps(described).encode(),
                lambda text: record_from_text(text, Described, "it", "look")),
        Message("experiment.json, on the device", (bundle / "experiment.json").read_bytes(),
                on_device("experiment.json", lambda file: _asked(read_experiment(file.parent)))),
        Message("measurements.json, on the device", json.dumps(found).encode(),
                on_device("measurements.json", lambda file: _known(read_results_file(file)))),
    ]  # fmt: skip


def mutations(content: bytes) -> Iterator[Mutation]:
    """Yield changes of a message: every value replaced and deleted, fields added, lists turned round, and changes of
    the text.
    """
    data = json.loads(content)
    for path in _paths(data):
        place = _shown(path)
        for value in REPLACEMENTS:
            yield Mutation("replaced", place, _encoded(_with(data, path, value)))
        if path:
            yield Mutation("deleted", place, _encoded(_without(data, path)))
            yield Mutation("nested", place, _encoded(_with(data, path, [_at(data, path)])))
        value = _at(data, path)
        if isinstance(value, dict):
            yield Mutation("a field added", place, _encoded(_with(data, path, {**value, "another": 1})))
            yield Mutation("fields turned round", place, _encoded(_with(data, path, dict(reversed(value.items())))))
        if isinstance(value, list) and len(value) > 1:
            yield Mutation("turned round", place, _encoded(_with(data, path, value[::-1])))
            yield Mutation("doubled", place, _encoded(_with(data, path, value * 2)))
        if isinstance(value, float):
            for factor in (-1, 0.5, 1.001, 1e9):
                yield Mutation(f"times {factor}", place, _encoded(_with(data, path, value * factor)))
    yield from _of_the_text(content)


def outcome(message: Message, mutation: Mutation, good: Any) -> str:
    """Return what comes of a changed message: "refused", "equal in effect", or "accepted: " and the reason. Raises
    whatever else happens.
    """
    try:
        found = message.read(mutation.content)
    except (UserError, DeviceError) as refused:
        text = str(refused)
        assert text, mutation
        assert len(text) < 200_000, mutation
        return "refused"
    if found == good:
        return "equal in effect"
    reasons = [why for place, why in REASONS.items() if re.search(place, mutation.place)]
    assert reasons, f"{message.name}: {mutation.kind} {mutation.place} is accepted: {found}"
    return f"accepted: {reasons[0]}"


def _effect(found: DeviceResults) -> Any:
    """What the search concludes from measurements."""
    return [
        (r.key, r.failed, r.nodes, r.ratio, r.ratio_interval, r.engine_ms, r.float_ms, r.p99_ms, r.layers)
        for r in found.results
    ], found.machine


def _asked(data: dict[str, Any]) -> Any:
    return {name: value for name, value in data.items() if name != "label"}


def _known(record: dict[str, Any]) -> Any:
    """What the runner concludes from what it has measured: which candidates need not be measured again."""
    results = [(entry["key"], entry.get("cause")) for entry in record["results"]]
    return results, record["fingerprint"], record["machine"], record["versions"].get("onnxruntime")


def _of_the_text(content: bytes) -> Iterator[Mutation]:
    for share in range(20):
        yield Mutation("cut off", f"after {share}/20", content[: len(content) * share // 20])
    middle = content.index(b":") + 1
    for name, text in (
        ("NaN", b"NaN"), ("infinity", b"-Infinity"), ("a number out of range", b"1e999"),
        ("ten thousand digits", b"9" * 10_000), ("deep nesting", b"[" * 100_000),
        ("closed deep nesting", b"[" * 100_000 + b"]" * 100_000), ("a control character", b'"\x00'),
        ("half a character", b'"\xc3"'), ("half a pair", b'"\\ud800"'), ("a byte of no encoding", b"\xff"),
    ):  # fmt: skip
        yield Mutation(name, "the first value", content[:middle] + text + content[middle:].lstrip()[1:])
        yield Mutation(name, "behind the end", content + text)
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        yield Mutation("encoded", encoding, content.decode().encode(encoding))
    yield Mutation("twice", "the whole", content * 2)
    yield Mutation("a key twice", "the first", b"{" + content[1 : content.index(b",")] + b"," + content[1:])
    yield Mutation("blanks", "around", b" \n" + content + b"\n\t")


def _written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        data = data[step]
    return data


def _with(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = deepcopy(data)
    _at(changed, path[:-1])[path[-1]] = value
    return changed


def _without(data: Any, path: tuple[Any, ...]) -> Any:
    changed = deepcopy(data)
    del _at(changed, path[:-1])[path[-1]]
    return changed


def _encoded(data: Any) -> bytes:
    return json.dumps(data).encode()


def _shown(path: tuple[Any, ...]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
