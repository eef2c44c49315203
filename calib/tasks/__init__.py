"""The built-in tasks, and how `--task` finds a task of the user's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from calib.errors import UserError

if TYPE_CHECKING:
    from calib.task import Task, TaskFactory

_FACTORIES: dict[str, TaskFactory] = {}
# Imported on demand, as torch is: the names alone are quick to have.
_MODULES = {
    "digits": "calib.tasks.digits",
    "digits-vit": "calib.tasks.digits_vit",
    "cifar10-resnet20": "calib.tasks.cifar10_resnet20",
    "cifar10-vit": "calib.tasks.cifar10_vit",
}
IN_MEMORY = "in-memory"
"""The name of a task that a Python program holds (`deploy.optimize`)."""
_held: list[Task] = []
_METHODS = ("model", "calibration", "evaluation", "metric", "loss")
_SET_METRIC = ("records", "metric_of")
"""In place of `metric`."""
_TEXTS = ("name", "metric_name")


def register(name: str) -> Callable[[TaskFactory], TaskFactory]:
    """Make a factory known as `--task name`.

    A built-in task is one file in this package:

    1. write a class with the members of `calib.task.Task`: `name`, `metric_name`, `model()`, `calibration()`,
       `evaluation()`, `metric(output, target)` (or what `calib.task.SetTask` has) and `loss(output, target)`;
       `calib.tasks.digits` is a short one to copy;
       `training(epoch)` besides (`calib.task.TrainableTask`) lets it be fine-tuned;
    2. write a function `(data: Path | None, weights: Path | None) -> Task`. It gets the paths of `--data` and
       `--weights`, and raises `UserError` with a message that says what to do when it cannot work with them;
    3. put `@register("my-task")` above that function and add `"my-task": "calib.tasks.my_task"` to `_MODULES`.

    A task of your own needs none of this: leave out step 3 and write `--task package.module:function`. A class that is
    called with `(data, weights)`, or a finished object, may stand in place of the function.
    """

    def add(factory: TaskFactory) -> TaskFactory:
        _FACTORIES[name] = factory
        return factory

    return add


def task_names() -> tuple[str, ...]:
    """Return the names of the built-in tasks."""
    return tuple(_MODULES)


@contextmanager
def held_in_memory(task: Task) -> Iterator[None]:
    """Let the name `in-memory` stand for an object of this program."""
    _held.append(task)
    try:
        yield
    finally:
        _held.pop()


def load_task(name: str, data: Path | None = None, weights: Path | None = None) -> Task:
    """Return the task called `name`: a built-in name, or `package.module:object` (a Task, or a factory called with both
    paths).

    The current directory can be imported from, as with `python -m`. What is called is defined in the named module, or
    inside the named package, whose `__init__` may hand it on: a module that only imports a function does not lend its
    name to it. An object that is a task already is not called, and may be of any class. Raises UserError for every way
    in which this can fail.
    """
    if ":" in name:
        return _from_user(name, data, weights)
    if name == IN_MEMORY and _held:
        return _checked(_held[-1], name)
    if name == IN_MEMORY:
        raise UserError("the model of this run was in the memory of a Python program: call deploy.optimize again there")
    if name not in _MODULES:
        known = ", ".join(task_names())
        raise UserError(f"unknown task {name!r}: use one of {known}, or package.module:object for your own")
    importlib.import_module(_MODULES[name])
    return _checked(_FACTORIES[name](data, weights), name)


def _from_user(name: str, data: Path | None, weights: Path | None) -> Task:
    module_name, _, attribute = name.partition(":")
    parts = attribute.split(".")
    if not all(part.isidentifier() for part in (*module_name.split("."), *parts)):
        raise UserError(f"{name!r} does not name a task: write package.module:object, with dots and no slashes")
    with _importing_here():
        found = _import(module_name)
        for part in parts:
            if not hasattr(found, part):
                raise UserError(
                    f"module {module_name} has no {attribute!r}: name the task, or the function that makes it"
                )
            found = getattr(found, part)
            if isinstance(found, ModuleType):
                raise UserError(f"{name} goes through the module {found.__name__}: write {found.__name__}:object")
        if isinstance(found, type) or (callable(found) and _missing(found)):
            _check_defined_in(module_name, found, name)
            found = _called(found, name, data, weights)
    return _checked(found, name)


def _check_defined_in(module_name: str, found: object, name: str) -> None:
    # instances have the __module__ of their class
    defined = str(getattr(found, "__module__", None))
    if defined != module_name and not defined.startswith(f"{module_name}."):
        raise UserError(
            f"{name} is defined in {defined} and not in {module_name}: name that module, or write a function here that "
            "calls it"
        )


def _import(module_name: str) -> object:
    try:
        return importlib.import_module(module_name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        # Only when the module itself or a parent is missing: what it imports is its own failure.
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {module_name} (no {error.name!r} in {Path.cwd()} or on the import path): "
                "start smpq in the directory that holds it, or install it"
            ) from error
        raise UserError(f"importing {module_name} failed: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"importing {module_name} failed: {_told(error)}") from error


def _called(factory: Callable[..., object], name: str, data: Path | None, weights: Path | None) -> object:
    try:
        return factory(data, weights)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}(data={data}, weights={weights}) failed: {_told(error)}") from error


def _checked(task: object, name: str) -> Task:
    from calib.task import Task

    missing = _missing(task)
    if missing:
        raise UserError(
            f"task {name} gave an object of type {type(task).__name__} without {', '.join(missing)}: a task has "
            f"{', '.join(_TEXTS)} "
            f"and the methods {', '.join(_METHODS)} (see calib.task.Task; {' and '.join(_SET_METRIC)} may stand "
            "for metric)"
        )
    # isinstance with a run-time protocol looks at names only, which `_missing` did more closely.
    assert isinstance(task, Task)
    return task


def _missing(task: object) -> list[str]:
    texts = [text for text in _TEXTS if not isinstance(getattr(task, text, None), str)]
    methods: tuple[str, ...] = _METHODS
    if any(hasattr(task, name) for name in _SET_METRIC):
        methods = (*(name for name in _METHODS if name != "metric"), *_SET_METRIC)
    return texts + [f"{method}()" for method in methods if not callable(getattr(task, method, None))]


@contextmanager
def _importing_here() -> Iterator[None]:
    """Put the current directory first on the import path, and take it away again."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
