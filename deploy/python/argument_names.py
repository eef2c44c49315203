"""Messages that name options of `smpq run`, for a caller of `optimize`, who gave arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from calib.declared import Field, OneOf, Parsed, declared_fields
from calib.errors import UserError
from deploy.run.settings import Settings
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.settings import FineTuneSettings

_COMMAND_OR_OPTION = re.compile(r"smpq [a-z-]+ [^;:\n]*|--(?P<option>[a-z][a-z-]*[a-z])(?: (?P<value>[\w.,]*\w))?")
"""A whole command, to be typed as it stands, or an option with the word behind it."""
_NUMBER = re.compile(r"[0-9.]+")
_SAME_NAME = ("budget", "target", "out", "method", "seconds", "finetune", "reconstruct")


@dataclass(frozen=True)
class _Argument:
    """What is given in place of an option; `of` is the class of settings that it belongs to, if any."""

    name: str
    field: Field | None = None
    of: str = ""

    def given(self, value: str | None) -> str:
        """Return it with the word that stands behind the option, as `batch=1` where it is a value of it."""
        if value is not None and self._takes(value):
            return f"{self.name}={value if _NUMBER.fullmatch(value) else repr(value)}{self.of}".replace("'", '"')
        return f"{self.name}={self.of}" + (f" {value}" if value is not None else "")

    def _takes(self, value: str) -> bool:
        if self.field is None or self.field.many:
            return False
        if self.field.kind in (int, float):
            return _NUMBER.fullmatch(value) is not None
        try:
            self.field.check_one(value)
        except UserError:
            return False
        return isinstance(self.field.declared.limits, OneOf | Parsed)


@contextmanager
def in_words_of_arguments() -> Iterator[None]:
    """Let each UserError name the arguments of `optimize` in place of options that have the same meaning."""
    try:
        yield
    except UserError as error:
        error.args = (_in_arguments(str(error)),)
        raise


def _in_arguments(message: str) -> str:
    """Return a message that names arguments; commands, and options that no argument stands for, are kept."""
    arguments = _arguments()

    def said(found: re.Match[str]) -> str:
        argument = arguments.get(found["option"] or "")
        return argument.given(found["value"]) if argument is not None else found[0]

    return _COMMAND_OR_OPTION.sub(said, message)


def _arguments() -> Mapping[str, _Argument]:
    """Return the argument of each option. An option of `smpq run` goes before one of a way to tune the weights."""
    found = {
        option: _Argument(name, field, f" of {owner.__name__}" if owner is not Settings else "")
        for owner in (FineTuneSettings, ReconstructionSettings, Settings)
        for name, field in declared_fields(owner).items()
        for option in re.findall(r"--([a-z-]+)", field.declared.option or "")
    }
    tuned = {"epochs": "finetune", "loss": "reconstruct"}
    return {
        **found,
        **{name: _Argument(name) for name in _SAME_NAME},
        **{option: _Argument(name, found[option].field) for option, name in tuned.items()},
    }
