"""The page of the methods: `python -m deploy.commands.methods_page docs/methods.md benchmarks/results` writes it.

It is made of what the registry declares, of the functions' docstrings, and of the records of benchmarks. A record
counts where its rows name a `method` of the registry and have a `top1`.
"""

from __future__ import annotations

import inspect
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calib.files.storage import write_bytes
from deploy.commands.methods_table import needs_of, what_follows
from smpq.methods import DEFAULT_METHOD, METHODS, Method

_CONDITIONS = ("network", "target", "rounding", "stage")
_HEAD = f"""# Methods

<!-- Made by python -m deploy.commands.methods_page docs/methods.md benchmarks/results: \
change the docstrings in smpq/methods. -->

A method says what every format of every layer is worth, or trains: then it returns a policy with its weights, \
within a budget on size,
average bits or bit operations. `smpq run --method NAME` takes its scores or its weights, \
`smpq methods` lists them in the terminal; the
default is `{DEFAULT_METHOD}`. What happens with scores is said in [The search](search.md). \
Costs are counted in passes over
the calibration data, besides calibration itself. Methods that need nothing can do without a sample, with
[`--data-free`](search.md#without-data).

A method of your own is one file in `smpq/methods` with one decorator. \
The docstring of `smpq.methods.base.method` says how.
"""


def page(results: Path) -> str:
    """Return the page; `results` is the directory of the records."""
    measured = _measured(results)
    rows = [
        f"| [`{name}`](#{name}) | {_prose(method.summary)} | {needs_of(method)} | {method.cost} |"
        for name, method in METHODS.items()
    ]
    overview = "\n".join(["| method | what it does | needs | cost |", "|---|---|---|---|", *rows, ""])
    return "\n".join([_HEAD, overview, *(_section(method, measured.get(name, [])) for name, method in METHODS.items())])


def _section(method: Method, measured: list[str]) -> str:
    text = (inspect.getdoc(method.function) or "").strip()
    paragraphs = [_prose(" ".join(each.split())) for each in text.split("\n\n")]
    facts = [
        f"- Paper: {_prose(method.paper)}",
        f"- Needs {needs_of(method)}; decides {method.decides}; costs {method.cost}",
        f"- {what_follows(method)}",
    ]
    table = ["| measured | top-1 | CPU seconds | record |", "|---|---|---|---|", *measured] if measured else []
    parts = [f"## {method.name}", *paragraphs, "\n".join(facts), *(["\n".join(table)] if table else [])]
    return "\n\n".join(parts) + "\n"


def _measured(results: Path) -> dict[str, list[str]]:
    """Return rows of tables by method: what was measured, and what it came to at each budget, the mean over seeds."""
    found: dict[str, list[str]] = {}
    for path in sorted(results.glob("*.json")):
        groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in _rows(json.loads(path.read_text())):
            groups.setdefault((row["method"], _condition(row)), []).append(row)
        for (name, condition), rows in groups.items():
            found.setdefault(name, []).append(_line(path.name, condition, rows))
    return found


def _rows(record: Any) -> Iterator[Mapping[str, Any]]:
    rows = record.get("rows", []) if isinstance(record, dict) else []
    return (row for row in rows if isinstance(row, dict) and row.get("method") in METHODS and "top1" in row)


def _condition(row: Mapping[str, Any]) -> str:
    parts = [str(row[name]) for name in _CONDITIONS if name in row]
    return ", ".join([*parts, *(["data-free"] if row.get("data_free") else [])])


def _line(record: str, condition: str, rows: list[Mapping[str, Any]]) -> str:
    budgets: dict[str, list[float]] = {}
    for row in rows:
        budgets.setdefault(str(row.get("budget", "")), []).append(float(row["top1"]))
    reached = ", ".join(f"{budget}: {statistics.fmean(values):.2f}" for budget, values in budgets.items())
    seconds = [float(row["cpu_seconds"]) for row in rows if "cpu_seconds" in row]
    spent = f"{statistics.fmean(seconds):.0f}" if seconds else ""
    seeds = max(map(len, budgets.values()))
    count = f" ({seeds} seeds)" if seeds > 1 else ""
    return f"| {condition}{count} | {reached} | {spent} | [{record}](../benchmarks/results/{record}) |"


def _prose(text: str) -> str:
    """Keep Markdown from reading signs of formulas; what stands in backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>|\[\]])", r"\\\1", part) for part in parts)


def main(file: str, results: str) -> None:
    """Write the page."""
    write_bytes(Path(file), page(Path(results)).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
