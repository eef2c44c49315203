"""What the shell offers for a value after the Tab key; nothing heavy is loaded for it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from click import Context
from click.shell_completion import CompletionItem

from calib.declared import APath, Field, OneOf
from calib.errors import UserError
from calib.formats.format import SYNONYMS
from calib.tasks import task_names
from smpq.problem.budget import COSTS

Completer = Callable[[Context, str], Iterable[CompletionItem]]

_RUN_FILE = "run.json"
_DEPTHS = ("", "*/", "*/*/")
"""Runs are looked for in the directory that is being typed, and in two below it."""


def completions(field: Field, context: Context, incomplete: str) -> list[CompletionItem]:
    """Return what a value that begins with `incomplete` may become."""
    limits = field.declared.limits
    if field.label in _COMPLETERS:
        return list(_COMPLETERS[field.label](context, incomplete))
    if isinstance(limits, OneOf):
        return list(_beginning(limits.names, incomplete))
    # the shell knows its files best
    return [CompletionItem(incomplete, type="file")] if isinstance(limits, APath) else []


def _beginning(names: Iterable[str], incomplete: str) -> Iterator[CompletionItem]:
    return (CompletionItem(name) for name in names if name.startswith(incomplete))


def _in_list(
    names: Iterable[str], incomplete: str, meaning: Mapping[str, str] | None = None
) -> Iterator[CompletionItem]:
    """Complete the last of the words between commas with one that means none of the others."""
    before, comma, last = incomplete.rpartition(",")
    known = meaning or {}
    given = {known.get(word, word) for word in re.sub(r"=[^,]*", "=", before).split(",")}
    return _beginning(
        [before + comma + name for name in names if known.get(name, name) not in given], before + comma + last
    )


def _tasks(context: Context, incomplete: str) -> Iterator[CompletionItem]:
    del context
    return _beginning(task_names(), incomplete)


def _targets(context: Context, incomplete: str) -> Iterator[CompletionItem]:
    from deploy.targets.families import FAMILIES
    from deploy.targets.target import device_names

    del context
    return _beginning([*FAMILIES, *device_names()], incomplete)


def _formats(context: Context, incomplete: str) -> Iterator[CompletionItem]:
    """Offer those of the target that the command names."""
    from deploy.targets.target import target_from_name

    try:
        offered = target_from_name(context.params.get("target") or "ort-cpu", look=False).default_formats
    except UserError:
        offered = ()
    return _in_list([*map(str, offered), *SYNONYMS], incomplete, SYNONYMS)


def _costs(context: Context, incomplete: str) -> Iterator[CompletionItem]:
    del context
    return _in_list([f"{cost}=" for cost in COSTS], incomplete)


def _runs(context: Context, incomplete: str) -> Iterator[CompletionItem]:
    """Offer directories that hold a run."""
    del context
    directory, begun = os.path.split(incomplete)
    for depth in _DEPTHS:
        found = Path(directory).glob(f"{glob.escape(begun)}*/{depth}{_RUN_FILE}")
        if runs := sorted(str(file.parent) for file in found):
            return map(CompletionItem, runs)  # deeper ones only where nothing is nearer
    return iter(())


def _new_or_known_runs(context: Context, incomplete: str) -> Iterator[CompletionItem]:
    """Offer the runs that may go on, or else any directory."""
    yield from list(_runs(context, incomplete)) or [CompletionItem(incomplete, type="dir")]


_COMPLETERS: dict[str, Completer] = {
    "--task": _tasks,
    "--target": _targets,
    "NAME": _targets,
    "--formats": _formats,
    "--budget": _costs,
    "RUN": _runs,
    "RUNS": _runs,
    "--out": _new_or_known_runs,
}
"""By the option or the argument, which mean the same in all commands."""
