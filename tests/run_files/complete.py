"""A run that holds every file: made once, to be copied and damaged."""

from __future__ import annotations

from pathlib import Path

from deploy.devices.base import Result
from deploy.files.loop import BundleFile
from deploy.files.synthetic import InputRow, SyntheticFile
from deploy.latency.history import Search, proposal_of
from deploy.latency.observed import Refusal
from deploy.latency.steps import LoopSettings, Step
from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.stages.bundling import write_next_bundle
from deploy.stages.choosing import score_for, search, write_stability
from deploy.stages.curving import draw_curve
from deploy.stages.explaining import explain
from deploy.stages.finetuning import finetune
from deploy.stages.making import build, export, measure, verify
from deploy.stages.run_all import open_run, write_reports
from deploy.stages.supernet import train_supernet
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from smpq.supernet.settings import SupernetSettings
from smpq.training.settings import FineTuneSettings
from tests.deploy.report.profile_sample import TENSORRT_10, profile

SETTINGS = Settings("tests.trainable_task:task", formats="w8a8,w4a8,fp32", samples=16, evaluations=70)
BUDGET = "latency=20x,size=0.8x"
"""Whatever the machine does meanwhile, its engines meet this latency."""
LOSS_BUDGET = f"{BUDGET},drop=100"
BOARD = "another board"
SYNTHETIC = SyntheticFile(
    samples=128,
    batch=64,
    seed=0,
    inputs=(InputRow(shape=(1, 6, 6), dtype="float32", mean=0.0, deviation=1.0, low=0, high=0),),
    source="example_inputs()",
    norms=3,
    noise_mismatch=0.5,
    mismatch=0.01,
    evaluation=True,
)


def make_run(path: Path) -> Workspace:
    """Make the run at `path`; what is returned has it open."""
    workspace = open_run(path, Progress(), SETTINGS)
    write_next_bundle(workspace, BUDGET, path.with_name("bundle"))
    _refuse_one(workspace)
    budget = Budget.from_text(LOSS_BUDGET)
    scores = score_for(workspace, budget)
    solution = search(workspace, budget, scores, loop=LoopSettings(measurements=2, designed=2))
    write_stability(workspace, scores, solution)
    finetune(workspace, solution.policy, FineTuneSettings(steps=2))
    export(workspace, solution.policy)
    build(workspace, solution.policy)
    measure(workspace, solution.policy, [2])
    verify(workspace, solution.policy)
    draw_curve(workspace, 2)
    explain(workspace, solution.policy)
    train_supernet(workspace, SupernetSettings(epochs=2, steps=2, walks=2, samples=16))
    write_reports(workspace.run, Progress())
    workspace.run.write(SYNTHETIC)  # which takes another run
    workspace.run.write(profile(TENSORRT_10))  # which takes another target
    return workspace


def _refuse_one(workspace: Workspace) -> None:
    """Write down that another board refused the first engine of the bundle, and that a search there began with it and
    ended.
    """
    first = proposal_of(next(iter(workspace.run.read(BundleFile).candidates.values())), workspace.space)
    unknown = dict.fromkeys(Result.__struct_fields__)
    result = Result(**{**unknown, "key": "0" * 16, "name": "0" * 16, "failed": "no kernel for deep", "cause": "refused",
                       "nodes": (), "batch": 1, "rounds_ms": (), "float_rounds_ms": ()})  # fmt: skip
    (refusal,) = workspace.observations.keep([(first.policy, result)], BOARD)
    assert isinstance(refusal, Refusal)
    begun = Search(workspace.run, workspace.space, BUDGET, BOARD, 20.0, [refusal])
    begun.add([Step(first, None, refusal, met=False)])
