"""The report of a run for people: one HTML file without script or network, and a few lines for the terminal."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from calib.files.storage import read_record, write_bytes
from deploy.files.report import ReportFile
from deploy.report.answers import answers
from deploy.report.sections import sections
from deploy.report.wording import shown


def write_html(run: Path) -> Path:
    """Read `report.json` of a run and write `report.html` beside it, whole or not at all.

    Raises UserError when `report.json` is missing, damaged or of another version, or when the page cannot be written.
    """
    page = run / "report.html"
    report = read_record(run / ReportFile.NAME, ReportFile, f"make it again with {ReportFile.MADE_BY}")
    write_bytes(page, render_html(report, run).encode(errors="replace"))
    return page


def summary_lines(report: ReportFile, run: Path) -> list[str]:
    """Return the five answers as plain text for a terminal, one line each, and a line for every further step to
    take.
    """
    lines = []
    for answer in answers(report, run):
        lines.append(f"{answer.question} {answer.sentences[0]}")
        if answer.verdict == "steps":
            lines += [f"  also: {sentence}" for sentence in answer.sentences[1:]]
    return [shown(line) for line in lines]


def render_html(report: ReportFile, run: Path) -> str:
    """Return the whole page: the answers first, then budget, plots, plan, what was left out, and where it all came
    from.
    """
    name = f"{report.task} on {report.target}"
    page = _TEMPLATES.get_template("page.html")
    return page.render(name=name, report=report, answers=answers(report, run), sections=sections(report))


def _printable(value: object) -> object:
    """Show a text of a model or a device as `shown` does; what is HTML already has been."""
    return value if hasattr(value, "__html__") else shown(value)


_TEMPLATES = Environment(
    loader=PackageLoader("deploy.report"), autoescape=True, finalize=_printable, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
