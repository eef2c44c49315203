"""Whose code a run may start: `run.json` names a task, and a task is code, so a run directory alone is not believed.

A task of the user's own is loaded when it is given on the command line, or when a record outside of the run says that
this user, on this machine, made the run at this place with this task. Built-in tasks are part of smpq and need neither.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from calib.errors import UserError
from calib.files.checkpoint import shown
from calib.files.storage import FileRecord, cannot_write, read_record, write_record
from calib.tasks import IN_MEMORY, task_names
from deploy.run.settings import Settings
from deploy.terminal.progress import Progress


class MadeHere(FileRecord, frozen=True, kw_only=True):
    """What this user started at one place: the run's absolute path, and what is loaded for it."""

    MADE_BY = "smpq run"

    run: str
    task: str
    data: str | None
    weights: str | None


def state_directory() -> Path:
    """Return `$SMPQ_STATE`, else `$XDG_STATE_HOME/smpq`, else `~/.local/state/smpq`; it need not exist yet."""
    if given := os.environ.get("SMPQ_STATE"):
        return Path(given).expanduser().absolute()
    # a relative XDG directory is to be ignored, says its specification
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".local" / "state") / "smpq"


def remember(run: Path, settings: Settings, progress: Progress) -> None:
    """Note that this user made the run at `run` with this task, which was given on the command line."""
    if settings.task in (*task_names(), IN_MEMORY):
        return
    path, record = _record_path(run), _record(run, settings)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_record(path, record)
        path.chmod(0o600)
    except (UserError, OSError) as error:
        reason = str(error) if isinstance(error, UserError) else cannot_write(path, error)
        progress.warn(f"{reason}. Further commands on this run will need --task; SMPQ_STATE names another directory")


def check_trusted(run: Path, settings: Settings, task: str | None) -> None:
    """Raise UserError unless the task in `settings`, which come from `run.json`, may be loaded; `task` is that of the
    command line, if any.
    """
    named = shown(settings.task)
    if task is not None:
        if task != settings.task:
            raise UserError(f"{run} is a run of the task {named}, not of {shown(task)}: give that one, or another run")
        return
    if settings.task in (*task_names(), IN_MEMORY) or _made_here(run, settings):
        return
    raise UserError(
        f"{run / 'run.json'} names the task {named}, which is code, and this user has not made the run in this place: "
        f"repeat the command with --task {named} if you trust that code"
    )


def _made_here(run: Path, settings: Settings) -> bool:
    path = _record_path(run)
    try:
        status = path.stat()
    except OSError:
        return False
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise UserError(f"{path} can be written by others, and is not believed: delete it, and give --task again")
    return read_record(path, MadeHere, "delete it, and give --task again") == _record(run, settings)


def _record(run: Path, settings: Settings) -> MadeHere:
    return MadeHere(run=str(run.resolve()), task=settings.task, data=settings.data, weights=settings.weights)


def _record_path(run: Path) -> Path:
    name = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()
    return state_directory() / "runs" / f"{name}.json"
