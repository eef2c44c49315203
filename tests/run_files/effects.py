"""What smpq makes of each file of a run, as plain values: two contents with the same effect are the same to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calib.files.storage import plain
from deploy.backends.onnxruntime import load_engine
from deploy.files.curve import CurveFile
from deploy.files.loop import BundleFile, LoopFile
from deploy.files.profile import ProfileFile
from deploy.files.report import ReportFile
from deploy.latency.history import Search, proposal_of
from deploy.latency.prediction import prediction
from deploy.report.page import summary_lines, write_html
from deploy.report.profile_lines import profile_lines
from deploy.report.profile_plot import profile_svg
from deploy.run.calibrating import _keep_digest
from deploy.run.directory import Run
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace
from deploy.stages.making import needs_build, needs_export
from deploy.stages.policies import read_policy
from deploy.stages.reporting import write_report
from deploy.stages.scoring import score
from deploy.stages.taking import take_point
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from smpq.supernet.files import SupernetFile
from tests.run_files.complete import BOARD


class Told(Progress):
    """Remembers what is said and warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)


Effect = Callable[[Workspace], Any]


def effect(workspace: Workspace, file: str) -> Any:
    """Use a file of the run as every command does that reads it; UserError as they raise it."""
    workspace.progress = told = Told()
    found = [use(workspace) for use in USES[file]]
    return [found, told.lines]


def _report(workspace: Workspace) -> Any:
    """`smpq report`."""
    report = write_report(workspace.run, {})
    page = write_html(workspace.run.path)
    return plain(report), page.read_bytes(), summary_lines(report, workspace.run.path)


def _page(workspace: Workspace) -> Any:
    page = write_html(workspace.run.path)
    return page.read_bytes(), summary_lines(workspace.run.read(ReportFile), workspace.run.path)


def _settings(workspace: Workspace) -> Any:
    """Every command begins with this."""
    settings = Run(workspace.run.path).settings()
    workspace.run.check(settings)
    workspace.run.keep(settings, workspace.identity)
    return plain(settings)


def _calibration(workspace: Workspace) -> Any:
    _keep_digest(workspace, workspace.fake_quantizer.calibration, ())


def _scores(workspace: Workspace) -> Any:
    scores = score(workspace)
    return _plain([dataclasses.replace(scores, efficiency_gap=0.0, stop_reason=""), scores.starts()])


def _policy(workspace: Workspace) -> Any:
    policy = read_policy(workspace)
    return policy.key()


def _observations(workspace: Workspace) -> Any:
    known = workspace.observations
    machines = known.machines
    return machines, [
        _plain([known.float_ms(name), known.engines(name), known.refusals(name)]) for name in (None, *machines)
    ]


def _bundle(workspace: Workspace) -> Any:
    bundle = workspace.run.read(BundleFile)
    with workspace.run.about(BundleFile):
        proposals = {name: proposal_of(row, workspace.space) for name, row in bundle.candidates.items()}
    return str(Budget.from_text(bundle.budget)), _plain(proposals)


def _loop(workspace: Workspace) -> Any:
    file = workspace.run.read(LoopFile)
    found = []
    for row in file.searches:
        found.append([row.machine, str(Budget.from_text(row.budget))])
        search = Search(workspace.run, workspace.space, row.budget, row.machine, row.limit_ratio, [])
        recorded = search.resumed(_not_measured)
        with workspace.run.about(LoopFile):
            answers = [recorded(Policy.from_file(step.policy, workspace.space)) for step in row.steps]
        found.append(_plain([search.limit, search.observations, search.refusals, answers]))
        for machine in dict.fromkeys((BOARD, row.machine)):
            known = workspace.observations
            found.append(_plain(prediction(workspace.run, known, workspace.edges, read_policy(workspace), machine)))
    return found


def _not_measured(policy: Any, again: bool) -> Any:
    return policy, again


def _float_model(workspace: Workspace) -> Any:
    """Every command that exports begins with this."""
    return export_float_model(workspace).read_bytes()


def _exported(workspace: Workspace) -> Any:
    needs_export(workspace, read_policy(workspace))


def _built(workspace: Workspace) -> Any:
    needs_build(workspace, read_policy(workspace))


def _engines(workspace: Workspace) -> Any:
    """`smpq verify` and `smpq measure` load engines as the file says."""
    names = workspace.backend.names
    inputs = [batch.inputs[0][:2].numpy() for batch in workspace.batches[:1]]
    return [_loaded(workspace.run.file(name), inputs) for name in (names.engines[""], names.float_engines[""])]


def _loaded(path: Path, inputs: list[np.ndarray]) -> Any:
    engine = load_engine(path)
    options = engine.session.get_session_options()
    outputs = [array.tolist() for array in engine.run(inputs)]
    threads = options.intra_op_num_threads, options.inter_op_num_threads
    return outputs, engine.session.get_provider_options(), str(options.graph_optimization_level), threads


def _supernet(workspace: Workspace) -> Any:
    return plain(workspace.run.read(SupernetFile))


def _profile(workspace: Workspace) -> Any:
    record = workspace.run.read(ProfileFile)
    return profile_lines(record), profile_svg(record)


def _curve(workspace: Workspace) -> Any:
    """`smpq curve` goes on from it, and `smpq take` and `smpq report` read it."""
    curve = workspace.run.read(CurveFile)
    taken = [take_point(workspace.run.path, point.name) for point in curve.points if point.policy is not None]
    return plain(curve), [plain(point) for point in taken]


USES: Mapping[str, tuple[Effect, ...]] = {
    "run.json": (_settings, _report),
    "synthetic.json": (_report,),
    "calibration.json": (_calibration,),
    "space.json": (_report,),
    "costs.json": (_report,),
    "scores.json": (_scores, _report),
    "policy.json": (_policy, _report),
    "budget.json": (_report,),
    "loss.json": (_report,),
    "stability.json": (_report,),
    "contributions.json": (_report,),
    "observations.json": (_observations,),
    "loop.json": (_loop, _report),
    "bundle.json": (_bundle,),
    "curve.json": (_report, _curve),
    "model.float.json": (_float_model,),
    "export.json": (_exported,),
    "build.json": (_built, _report),
    "latency.json": (_report,),
    "verify.json": (_report,),
    "finetune.json": (_report,),
    "supernet.json": (_supernet,),
    "report.json": (_page,),
    "profile.json": (_profile,),
    "engine.json": (_engines,),
}


def _plain(value: Any) -> Any:
    """Return dataclasses, mappings and sequences as nested lists that compare by value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_plain(getattr(value, each.name)) for each in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(each)] for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return sorted(value) if isinstance(value, frozenset) else value
