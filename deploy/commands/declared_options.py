"""Options and arguments of commands, made from what settings declare (`calib.declared`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from calib.declared import APath, Field, Group, Interval, OneOf, declared_fields
from calib.errors import UserError
from deploy.commands.completing import completions

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WIDEST_COLUMN = 28
_NAMES = {int: "integer", float: "number", str: "text", Path: "path"}

Command = TypeVar("Command", bound=Callable[..., Any])
Owner = TypeVar("Owner")


class DeclaredType(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """Text of the command line as a value that the field allows. Numbers are plain digits, and minus zero is zero."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.name = _NAMES[field.kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value."""
        del param  # the field knows its name
        if not isinstance(value, str):  # a default
            return value
        try:
            found = self._read(value)
            self.field.check_one(found)
        except UserError as error:
            raise click.UsageError(f"{error}.", ctx) from error
        resolved = self.field.kind is str and isinstance(self.field.declared.limits, APath)
        return str(Path(found).resolve()) if resolved else found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what the shell offers."""
        del param
        return completions(self.field, ctx, incomplete)

    def _read(self, text: str) -> Any:
        if self.field.kind is Path:
            return Path(text) if text else ""
        if self.field.kind is str:
            return text
        plain = (_WHOLE if self.field.kind is int else _DECIMAL).fullmatch(text.strip())
        if plain is None or not math.isfinite(float(text)):
            raise self.field.refusal(text)
        return self.field.kind(text) + 0


class DeclaredOption(click.Option):
    """An option that knows its field."""

    def __init__(self, field: Field) -> None:
        declared = field.declared
        assert declared.option is not None
        kind: dict[str, Any] = {"is_flag": True}
        if field.kind is not bool:
            kind = {"type": DeclaredType(field), "metavar": declared.metavar, "multiple": field.many}
        if not (field.required or field.many):
            kind["default"] = field.default
        super().__init__([declared.option], required=field.required, help=_help(field), **kind)
        self.field = field


class DeclaredArgument(click.Argument):
    """An argument that knows its field."""

    def __init__(self, field: Field) -> None:
        super().__init__(
            [field.label.lower()], type=DeclaredType(field), required=field.required, nargs=-1 if field.many else 1
        )
        self.field = field

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return its name and what it is."""
        del ctx
        return self.field.label if self.required else f"[{self.field.label}]", self.field.declared.help


class GroupedCommand(click.Command):
    """A command whose help shows its options under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        rows = {
            group: [record for each in parameters if (record := each.get_help_record(ctx)) is not None]
            for group, parameters in grouped(self.get_params(ctx)).items()
        }
        widest = min(max(len(names) for records in rows.values() for names, _ in records), _WIDEST_COLUMN)
        for group, records in rows.items():
            with formatter.section(group.value):
                # columns begin at the same place in all groups
                formatter.write_dl([(names.ljust(widest), meaning) for names, meaning in records])


def grouped(parameters: Iterable[click.Parameter]) -> dict[Group, list[click.Parameter]]:
    """Return options and arguments by their group, in the order of `Group`; groups without any are left out."""
    known = list(parameters)
    found = {group: [each for each in known if _group(each) is group] for group in Group}
    return {group: members for group, members in found.items() if members}


def _group(parameter: click.Parameter) -> Group:
    if isinstance(parameter, DeclaredArgument):
        return Group.ARGUMENTS
    return parameter.field.declared.group if isinstance(parameter, DeclaredOption) else Group.OUTPUT


def declared_options(owner: type, *names: str) -> Callable[[Command], Command]:
    """Give a command the options and arguments of a settings class: those of the fields `names`, or all that have
    one.
    """
    fields = declared_fields(owner)
    chosen = (
        [fields[name] for name in names] if names else [field for field in fields.values() if field.declared.option]
    )

    def give(command: Command) -> Command:
        for field in reversed(chosen):
            option = field.declared.option or ""
            made = DeclaredOption if option.startswith("-") else DeclaredArgument
            existing: list[click.Parameter] = getattr(command, "__click_params__", [])
            command.__click_params__ = [*existing, made(field)]  # type: ignore[attr-defined]
        return command

    return give


def settings_from_options(owner: type[Owner], options: dict[str, Any], **others: Any) -> Owner:
    """Take the values of a settings class out of the options of a command, and return the settings; `others` are
    further fields.
    """
    given = {
        name: options.pop(field.option_name)  # under which click passes it on
        for name, field in declared_fields(owner).items()
        if field.option_name in options
    }
    return owner(**given, **others)


def _help(field: Field) -> str:
    declared = field.declared
    names = f": {declared.limits.short}" if isinstance(declared.limits, OneOf) else ""
    shown = field.kind is not bool and not field.many and not field.required and field.default not in (None, "")
    default = declared.unset or (str(field.default) if shown else "")
    notes = [f"default: {default}"] if default else []
    notes += [declared.limits.short] if isinstance(declared.limits, Interval) else []
    return f"{declared.help}{names}" + (f"  [{'; '.join(notes)}]" if notes else "")
