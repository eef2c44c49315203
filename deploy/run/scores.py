"""The scores of a run as an object."""

from __future__ import annotations

from deploy.run.directory import Run
from smpq.files import ScoresFile
from smpq.methods import method_from_name
from smpq.problem.policy import Space
from smpq.scoring.scores import Scores


def find_scores(run: Run, space: Space) -> Scores | None:
    """Read `scores.json`; None when it is not there. UserError when it is of another space, or of an unknown method."""
    record = run.find(ScoresFile)
    if record is None:
        return None
    with run.about(ScoresFile):
        method_from_name(record.method)
        return Scores.from_file(record, space)
