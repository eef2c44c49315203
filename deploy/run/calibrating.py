"""Calibration of a run: ranges, rounded weights, and what is written down of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP16
from deploy.files.search import CalibrationFile
from deploy.lowering.fp16_range import keeping_float32
from deploy.run.directory import versions
from deploy.run.widths import reconstructed_weights
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer

if TYPE_CHECKING:
    from deploy.run.workspace import Workspace


def calibrated(workspace: Workspace, rules: QdqRules) -> FakeQuantizer:
    """Calibrate, and round every weight that the space may need. Writes `calibration.json`, and says so where this is
    not what the run began with.
    """
    own, units, space, notes = workspace.settings, workspace.space.units, workspace.space, list[str]()
    settings = CalibrationSettings(own.observer, own.rounding, workspace.target.activation_scheme, own.widths)
    with workspace.progress.step("calibrate"):
        limit = workspace.resources.memory_limit_mb
        calibration = Calibration(workspace.traced, units, workspace.batches, settings, limit, workspace.attention)
    if workspace.target.reference == FP16:
        rules = keeping_float32(rules, calibration, units, notes.append)
    for note in notes:
        workspace.progress.say(note)
    formats = {unit.path: space.formats[group.name] for group in space.groups for unit in group.units}
    with workspace.progress.bar("round weights", sum(map(len, formats.values()))) as advance:
        calibration.prepare(units, formats, advance)
    quantizer = FakeQuantizer(workspace.traced, units, calibration, rules)
    if own.reconstruct_widths is not None:
        calibration.take(reconstructed_weights(workspace, quantizer, own.reconstruct_widths))
    _keep_digest(workspace, calibration, tuple(notes))
    return quantizer


def _keep_digest(workspace: Workspace, calibration: Calibration, notes: tuple[str, ...]) -> None:
    record = CalibrationFile(
        digest=calibration.digest(), threads=torch.get_num_threads(), versions=versions(), notes=notes
    )
    before = workspace.run.find(CalibrationFile)
    if before is None:
        workspace.run.write(record)
    elif before.digest != record.digest:
        workspace.progress.warn(
            "the rounded weights or the ranges differ from those that this run began with (another processor, number "
            f"of threads, {before.threads} then and {record.threads} now, or version of torch): policies are evaluated "
            "anew"
        )
