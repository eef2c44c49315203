"""Every JSON file of a run, as a typed record: what it holds, its version, and the limits of its values."""

from __future__ import annotations

from calib.files.storage import FileRecord
from deploy.files.curve import CurveFile
from deploy.files.engine import BuildFile, ExportFile, FinetuneFile, FloatModelFile, LatencyFile
from deploy.files.loop import BundleFile, LoopFile, ObservationsFile
from deploy.files.profile import ProfileFile
from deploy.files.report import ReportFile
from deploy.files.search import BudgetFile, CalibrationFile, CostsFile, LossFile, SpaceFile
from deploy.files.synthetic import SyntheticFile
from deploy.files.verification import VerifyFile
from deploy.run.record import RunFile
from smpq.files import ContributionsFile, PolicyFile, ScoresFile, StabilityFile
from smpq.supernet.files import SupernetFile

RUN_FILES: tuple[type[FileRecord], ...] = (
    RunFile, SyntheticFile, CalibrationFile, SpaceFile, CostsFile, ScoresFile, PolicyFile, BudgetFile, LossFile,
    StabilityFile, ContributionsFile, ObservationsFile, LoopFile, BundleFile, CurveFile, FloatModelFile, ExportFile,
    BuildFile, LatencyFile, VerifyFile, FinetuneFile, SupernetFile, ReportFile, ProfileFile,
)  # fmt: skip
"""In the order in which a run writes them."""
