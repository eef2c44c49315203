"""Put a mutation in the place of a file, and say what became of it."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib.errors import UserError
from deploy.run.workspace import Workspace
from tests.run_files.effects import effect
from tests.run_files.mutations import Mutation
from tests.run_files.reasons import reason

LONGEST_SECONDS = 10
LONGEST_MESSAGE = 800
_NAMED = re.compile(r"\w+\.(json|safetensors|onnx)\b|has changed|have changed since")
"""Two files that contradict each other: the message names either. What run.json is about may have changed, or
run.json.
"""
REFUSED, EQUAL, ACCEPTED, FAILED = "refused", "equal", "accepted", "failed"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation; `said` is the message, the reason why it may be accepted, or what went wrong."""

    mutation: Mutation
    kind: str
    said: str


class Trials:
    """Tries mutations on one open run, whose files are as before after each."""

    def __init__(self, workspace: Workspace) -> None:
        """Keep every file of the run, and the effect of each that is tried."""
        self._prepared = workspace
        self._kept = {path: path.read_bytes() for path in workspace.run.path.iterdir() if path.is_file()}
        self._effects: dict[str, Any] = {}

    @property
    def run(self) -> Path:
        """The directory of the run."""
        return self._prepared.run.path

    def __call__(self, mutation: Mutation) -> Verdict:
        """Try one mutation."""
        usual = self._usual(mutation.file)
        file = self._prepared.run.file(mutation.file)
        file.write_bytes(mutation.content())
        try:
            with at_most(LONGEST_SECONDS):
                found = effect(self._prepared, mutation.file)
        except UserError as error:
            wrong = wrong_with(str(error), file)
            return Verdict(mutation, FAILED if wrong else REFUSED, wrong or str(error))
        except Exception:  # noqa: BLE001 - whatever is raised is what is looked for
            return Verdict(mutation, FAILED, traceback.format_exc(limit=-4))
        finally:
            self._restore()
        if found == usual:
            return Verdict(mutation, EQUAL, "")
        why = reason(mutation)
        return Verdict(
            mutation, ACCEPTED if why else FAILED, why or f"accepted for no reason: {difference(usual, found)}"
        )

    def _usual(self, file: str) -> Any:
        if file not in self._effects:
            self._effects[file] = effect(self._prepared, file)
            self._restore()
            again = effect(self._prepared, file)
            assert again == self._effects[file], f"the effect of {file} is not the same twice"
            self._restore()
        return self._effects[file]

    def _restore(self) -> None:
        for path, content in self._kept.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


def wrong_with(message: str, file: Path) -> str:
    """Say what is wrong with a refusal; nothing when it is as it should be."""
    if not message.isprintable():
        return f"not one printable line: {message!r}"
    if len(message) > LONGEST_MESSAGE:
        return f"{len(message)} characters: {message}"
    if not _NAMED.search(message):
        return f"names no file of the run: {message}"
    return ""


def difference(one: Any, other: Any) -> str:
    """Return the first place where two effects differ."""
    if type(one) is type(other) and isinstance(one, (list, tuple)) and len(one) == len(other):
        return next((difference(a, b) for a, b in zip(one, other, strict=True) if a != b), "")
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((f"{key} {difference(one[key], other[key])}" for key in one if one[key] != other[key]), "")
    if isinstance(one, str) and isinstance(other, str):
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        return f"{one[max(0, at - 30) : at + 50]!r} / {other[max(0, at - 30) : at + 50]!r}"
    return f"{str(one)[:150]} / {str(other)[:150]}"


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes more time of the processor."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
