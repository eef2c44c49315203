"""Puts the targets and the rules of their tables into docs/formats-and-targets.md, as `smpq targets` shows them."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.exceptions import PluginError
from rich.table import Table

from deploy.targets.families import FAMILIES
from deploy.targets.tables import overview, rules
from deploy.targets.target import target_from_name

_PAGE = "formats-and-targets.md"
_OVERVIEW = "<!-- targets -->"
_RULES = re.compile(r"^<!-- rules: (?P<name>[\w.-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace each marker by its table. PluginError where the overview or the rules of a family are missing."""
    if page.file.src_uri != _PAGE:
        return markdown
    families = {target_from_name(name, look=False).family for name in _RULES.findall(markdown)}
    if _OVERVIEW not in markdown or families != set(FAMILIES):
        raise PluginError(
            f"{_PAGE} has to have {_OVERVIEW!r}, and '<!-- rules: NAME -->' for each family: {', '.join(FAMILIES)}"
        )
    shown = _RULES.sub(lambda match: _markdown(rules(target_from_name(match["name"], look=False))), markdown)
    return shown.replace(_OVERVIEW, _markdown(overview()))


def _markdown(grid: Table) -> str:
    """Write a table for the terminal as one of Markdown."""
    headers = [str(column.header) for column in grid.columns]
    rows = zip(*(column.cells for column in grid.columns), strict=True)
    lines = [headers, ["---"] * len(headers), *([_cell(str(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"([<>*\[\]|_])", r"\\\1", text)
