"""Weights that the built-in tasks train on first use, kept in the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from calib.errors import UserError, first_line
from calib.files.storage import write_bytes
from calib.threads import computing_with


def cache_directory() -> Path:
    """Return `$SMPQ_CACHE`, or `~/.cache/smpq`; it need not exist yet."""
    given = os.environ.get("SMPQ_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "smpq"


def cache_path(name: str, recipe: Mapping[str, object]) -> Path:
    """Return the file for `name` trained with `recipe` (JSON values: epochs, learning rate, widths, seed, ...).

    Any change of the recipe is another file, so an old cache is never taken for a new model.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return cache_directory() / f"{name}-{digest[:16]}.safetensors"


def trained(
    name: str,
    model: nn.Module,
    recipe: Mapping[str, object],
    train: Callable[[nn.Module], None],
    *,
    threads: int | None = None,
) -> nn.Module:
    """Return `model` in eval mode with the cached weights of this recipe, or after `train(model)`, which is then
    cached.

    `threads` limits torch while it trains. One is right for small models: on a busy machine two threads wait for each
    other at every layer and take many times as long, and sums come out the same on any number of cores.

    Of several processes that want the same weights one trains, and the others wait for it. A cache file that cannot be
    read or does not fit is replaced, and a notice on stderr says so. Raises UserError when the cache directory cannot
    be written.
    """
    path = cache_path(name, recipe)
    if not _restored(model, path):
        with _alone(path):
            if not _restored(model, path, quiet=True):
                _notice(f"{name}: training the model once; its weights will be kept in {path.parent}")
                with computing_with(threads or torch.get_num_threads()):
                    train(model)
                write_bytes(path, save({key: value.contiguous() for key, value in model.state_dict().items()}))
    return model.eval()


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; set SMPQ_CACHE to a directory that can be written"
        ) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process trains for `path`. The lock ends with its process, however that ends."""
    if sys.platform == "win32":
        yield  # each process trains for itself
        return
    lock = path.with_name(f".{path.name}.lock")
    with _writable(lock):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = _locked(lock)
    with stream:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path) -> IO[str]:
    import fcntl

    while True:
        stream = lock.open("w")
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(stream.fileno()), lock.stat()):
                return stream
        except FileNotFoundError:  # who had the lock has removed its file
            pass
        stream.close()


def _restored(model: nn.Module, path: Path, *, quiet: bool = False) -> bool:
    try:
        model.load_state_dict(load(path.read_bytes()))
    except FileNotFoundError:
        return False
    except (OSError, SafetensorError, RuntimeError) as error:
        if not quiet:
            _notice(f"cache file {path} cannot be used ({first_line(error)}); the model is trained again")
        return False
    return True


def _notice(text: str) -> None:
    # Not standard output: `--json` owns that.
    print(text, file=sys.stderr)  # noqa: T201
