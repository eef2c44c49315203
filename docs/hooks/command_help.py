"""Puts the usage and options of each command into docs/commands.md, from click's own help: they cannot go stale."""

from __future__ import annotations

import re
from typing import Any

import click
from mkdocs.exceptions import PluginError

from cli import smpq
from deploy.commands.declared_options import DeclaredArgument, DeclaredOption, grouped

_MARKER = re.compile(r"^<!-- help: (?P<name>[\w-]+) -->$", re.MULTILINE)
_PAGE = "commands.md"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace each marker by the help of its command. PluginError where markers and commands are not the same."""
    if page.file.src_uri != _PAGE:
        return markdown
    named = _MARKER.findall(markdown)
    if sorted(named) != sorted(smpq.commands):
        raise PluginError(
            f"{_PAGE} has to have '<!-- help: NAME -->' once for each of {sorted(smpq.commands)}, not {sorted(named)}"
        )
    return _MARKER.sub(lambda match: _help(match["name"]), markdown)


def _help(name: str) -> str:
    command = smpq.commands[name]
    context = click.Context(command, info_name=name, parent=click.Context(smpq, info_name="smpq"))
    usage = " ".join(["smpq", name, *command.collect_usage_pieces(context)])
    rows = []
    for group, parameters in grouped(command.get_params(context)).items():
        rows.append(f"| **{group.value}** | | |")
        rows += [
            f"| `{_line(record[0])}` | {_literal(_line(record[1]))} | {_literal(_line(_allowed(parameter)))} |"
            for parameter in parameters
            if (record := parameter.get_help_record(context)) is not None
        ]
    head = ["| option | meaning | allowed |", "|---|---|---|"]
    return "\n".join([_prose(command.help or ""), "", "```text", usage, "```", "", *head, *rows])


def _allowed(parameter: click.Parameter) -> str:
    """What one value may be, as the settings declare it; nothing for a flag."""
    declared = isinstance(parameter, (DeclaredOption, DeclaredArgument))
    return parameter.field.allowed if declared and parameter.field.kind is not bool else ""


def _prose(text: str) -> str:
    return re.sub(r"(?<=\S)\n(?=\S)", " ", _literal(text))


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _literal(text: str) -> str:
    """Keep Markdown and HTML from reading signs in plain text."""
    return re.sub(r"([<>*\[\]])", r"\\\1", text)
