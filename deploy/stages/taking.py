"""Take: a point of the curve becomes the policy of the run. Writes `policy.json`."""

from __future__ import annotations

from pathlib import Path

from calib.errors import UserError
from deploy.files.curve import CurveFile, PointRow
from deploy.files.search import BudgetFile
from deploy.run.directory import Run
from deploy.stages.policies import allowed
from deploy.stages.recorded import Recorded
from smpq.problem.policy import Policy


def take_point(path: Path, name: str) -> PointRow:
    """Write the policy of a point of the curve to `policy.json`. No task is imported, and no model loaded.

    It was chosen for no budget: that of the policy before, `budget.json`, is removed. Files of the other stages stay,
    and count as absent until they are made for this policy. UserError where there is no curve or no such point.
    """
    run = Run(path)
    run.settings()
    run.lock()
    curve = run.read(CurveFile)
    point = _point(curve, name)
    if point.policy is None:
        raise UserError(
            f"{point.name} is what onnxruntime's quantize_static makes, not a policy of this run: take another point"
        )
    read = Recorded(run)
    with run.about(CurveFile):
        policy = allowed(Policy.from_file(point.policy, read.space), read.space, read.space_file.refused, curve.NAME)
    run.write(policy.to_file(read.space.groups))
    run.file(BudgetFile.NAME).unlink(missing_ok=True)
    return point


def _point(curve: CurveFile, name: str) -> PointRow:
    found = next((point for point in curve.points if point.name == name.upper()), None)
    if found is None:
        known = ", ".join(point.name for point in curve.points)
        raise UserError(f"the curve has no point {name}: it has {known}")
    return found
