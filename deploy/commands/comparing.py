"""The command that puts runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from calib.declared import APath, Declared, Group
from deploy.commands.declared_options import declared_options
from deploy.commands.options import Result, command, printed


@dataclass(frozen=True)
class _Own:
    """What this command takes."""

    runs: Annotated[tuple[Path, ...], Declared("run directories of one network, two or more", APath(), "RUNS")]
    picture: Annotated[
        Path | None,
        Declared("also draw it into this file, as SVG", APath(), "--picture", Group.OUTPUT, metavar="FILE"),
    ] = None


@command("compare")
@declared_options(_Own, "runs", "picture")
@printed
def compare(runs: tuple[Path, ...], picture: Path | None, progress: Any) -> Result:
    """Put runs of one network side by side: plans, scores with rank correlations, accuracy, latency and cost.

    Reads the files of the runs alone; no model is loaded, and no run is changed.
    """
    from calib.errors import UserError
    from calib.files.storage import write_bytes
    from deploy.report.comparison_lines import comparison_lines
    from deploy.report.comparison_picture import comparison_svg
    from deploy.stages.comparing import compare as compare_runs

    del progress
    if picture is not None and not picture.parent.is_dir():
        raise UserError(f"--picture: {picture.parent} is no directory that is there: make it, or name another place")
    if picture is not None and picture.is_dir():
        raise UserError(f"--picture: {picture} is a directory: name a file in it")
    found = compare_runs(runs)
    lines = comparison_lines(found)
    if picture is not None:
        write_bytes(picture, comparison_svg(found).encode(errors="replace"))
        lines += ["", f"picture: {picture}"]
    return found, lines, 0
