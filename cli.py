"""The command line: each command parses, calls one library function, and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from calib.errors import UserError
from calib.files.storage import plain
from deploy.commands.internal_error import InternalError
from deploy.commands.numbers import DECIMAL, FURTHER_BATCH, PLACE, WHOLE
from deploy.commands.options import (
    device_option,
    output_options,
    resource_options,
    run_argument,
    run_directory,
    settings_from_options,
    task_options,
)
from deploy.terminal.printable import printable
from deploy.terminal.signals import Stopped, stopped_by_signals
from smpq.methods import DEFAULT_METHOD, METHODS, method_from_name

NOT_MET = 1
WRONG_INPUT = 2
INTERNAL_ERROR = 70
_LONGEST_MESSAGE = 4000
_METHOD_NAMES = ", ".join(METHODS)


def main() -> None:
    """Run the command line: a wrong input is one message and exit code 2, a bug of ours is one message and exit code
    70.
    """
    try:
        with stopped_by_signals():
            smpq(prog_name="smpq", standalone_mode=False)  # also where it is not the program itself, as under python -m
    except Stopped as stopped:
        click.echo(
            f"stopped by {stopped.name}; what the run had finished is kept, the same command goes on from there",
            err=True,
        )
        raise
    except UserError as error:
        _fail(str(error))
    except InternalError as error:
        _fail(error.message(), INTERNAL_ERROR)
    except BrokenPipeError:  # nobody reads the output any more, as behind `| head`
        sys.stdout = None  # so that nothing is flushed into it
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "smpq"
        _fail(f"{error.format_message()} See {where} --help")
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what the run had finished is kept, the same command goes on from there", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody should see a traceback
        _fail(InternalError(error, None).message(), INTERNAL_ERROR)


def _fail(message: str, code: int = WRONG_INPUT) -> None:
    click.echo(f"error: {printable(message, _LONGEST_MESSAGE)}", err=True)
    sys.exit(code)


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="smpq")
@click.pass_context
def smpq(context: click.Context) -> None:
    """Give a PyTorch model, data and a budget; get the most accurate mixed-precision engine that meets it, with proof.

    \b
    smpq run --task digits --budget latency=0.8x --out runs/digits

    does everything. The other commands are its stages. Each reads and writes the run directory, so you can stop, look,
    edit policy.json by hand, and go on:

    \b
    score          -> scores.json        what each format of each layer contributes, with intervals
    train-supernet -> supernet.*         the paper's way to scores: smpq run --method smpq
    solve          -> policy.json        the best formats for a budget; scores are used again
    finetune       -> finetuned.*        the weights trained in their formats, if the task has training data
    export         -> model.*.onnx       the plan as ONNX with Q/DQ nodes for the target
    build          -> engine.*           the engine, and what each layer became in it
    measure        -> latency.json       the engine against the float engine, interleaved
    bundle, feedback                     measure on a device without a network connection (with one: run --device)
    explain        -> contributions.json what each layer's format costs, with intervals
    verify         -> verify.json        the evaluation data through PyTorch, ONNX and engine
    report         -> report.html        all of it on one page
    profile        -> profile.json, .svg where the time of an engine goes, layer by layer, on an NVIDIA GPU
    doctor                               what a machine or a device has and lacks, and the commands that mend it
    methods, targets                     the methods that choose formats; the devices, and what is real on each

    Exit codes: 0 done, 1 the budget was not met, 2 wrong input, 70 a bug in smpq.
    """  # noqa: D301 - click reads the backspace
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@smpq.command("run")
@task_options
@click.option(
    "--budget",
    required=True,
    help="limits, e.g. latency=0.65x or size=0.2x,avg_bits=3.5; x is a fraction of the float model",
)
@click.option(
    "--finetune",
    type=DECIMAL,
    help="epochs of fine-tuning on the task's training data  [default: 0; 4 with --method "
    f"{' or '.join(name for name, method in METHODS.items() if method.finetuned)}]",
)
@click.option(
    "--method",
    default=DEFAULT_METHOD,
    show_default=True,
    help=f"where scores come from: {_METHOD_NAMES} (see smpq methods)",
)
@device_option
@output_options
@resource_options
def run_command(
    budget: str,
    finetune: float | None,
    method: str,
    device: str,
    out: Path,
    progress: Any,
    resources: Any,
    **options: Any,
) -> tuple[Any, list[str], int]:
    """Search, fine-tune with --finetune, export, build, measure, verify and report: the whole job.

    Ends with the answers and the path of report.html. Exit code 1 means that the budget was not met; the closest engine
    is in the run all the same. The same command on an unfinished run goes on where it stopped.
    """
    from deploy.report.page import summary_lines
    from deploy.stages.run_all import run_all
    from smpq.training.finetune import FineTuneSettings

    usual = FineTuneSettings.epochs if method_from_name(method).finetuned else 0.0
    epochs = finetune if finetune is not None else usual
    tuning = FineTuneSettings(epochs=epochs) if epochs else None
    report = run_all(out, settings_from_options(options), budget, progress, tuning, method, resources, device)
    lines = [*summary_lines(report), "", f"report: {out / 'report.html'}"]
    return report, lines, 0 if report.met else NOT_MET


@smpq.command()
@task_options
@click.option("--method", help=f"{_METHOD_NAMES} (see smpq methods)  [default: that of the run, or {DEFAULT_METHOD}]")
@output_options
@resource_options
def score(method: str | None, out: Path, progress: Any, resources: Any, **options: Any) -> tuple[Any, list[str], int]:
    """Say what every format of every layer contributes: scores.json. Starts a run; any budget can be solved from it
    later.
    """
    from deploy.stages import score as score_stage
    from deploy.stages.run_all import open_run

    if method is not None:
        method_from_name(method)
    with open_run(out, progress, settings_from_options(options), resources) as workspace:
        scores = score_stage(workspace, method=method)
    summary = f"{scores.method}: {scores.evaluations} evaluations, {scores.permutations} samples of each, stopped by {scores.stop_reason}"
    return scores.to_file(), [f"scores: {out / 'scores.json'} ({summary})"], 0


@smpq.command("train-supernet")
@task_options
@click.option(
    "--epochs",
    type=WHOLE,
    default=10,
    show_default=True,
    help="Shapley values are estimated after each of the second half",
)
@click.option("--steps", type=WHOLE, help="batches an epoch  [default: all of the training data]")
@click.option("--walks", type=WHOLE, default=10, show_default=True, help="permutations for each estimate")
@click.option("--held-out", type=WHOLE, default=512, show_default=True, help="calibration samples for each estimate")
@click.option(
    "--gamma",
    type=DECIMAL,
    default=0.5,
    show_default=True,
    help="walks end below this share of the supernet's metric; 0: never",
)
@click.option(
    "--complexity",
    type=DECIMAL,
    default=0.0,
    show_default=True,
    help="weight of the expected bit operations in the loss",
)
@click.option(
    "--contribution", default="metric", show_default=True, help="what operations contribute to: metric, loss, kl"
)
@output_options
@resource_options
def train_supernet(
    epochs: int, steps: int | None, walks: int, held_out: int, gamma: float, complexity: float, contribution: str, out: Path,
    progress: Any, resources: Any, **options: Any,
) -> tuple[Any, list[str], int]:  # fmt: skip
    """Train a network that holds all formats of every layer, and score them: supernet.safetensors, supernet.json.

    The paper's way; smpq run with a method that uses a supernet (smpq methods) goes on from there. The task needs
    training data. The same command on an unfinished training goes on after its last epoch.
    """
    from deploy.stages.run_all import open_run
    from deploy.stages.supernet import train_supernet as supernet_stage
    from smpq.supernet.files import SupernetFile
    from smpq.supernet.game import GameSettings
    from smpq.supernet.training import SupernetSettings

    settings = SupernetSettings(
        epochs=epochs,
        steps=steps,
        walks=walks,
        samples=held_out,
        gamma=gamma,
        complexity=complexity,
        game=GameSettings((contribution,)),
    )
    with open_run(out, progress, settings_from_options(options), resources) as workspace:
        _, state = supernet_stage(workspace, settings)
    found = state.contributions[contribution]
    line = f"supernet: {out / 'supernet.safetensors'} ({found.updates} estimates, {len(found.walks)} walks, {found.truncated} of them cut)"
    return workspace.run.read(SupernetFile), [line], 0


@smpq.command()
@run_argument
@click.option("--budget", required=True, help="limits, e.g. size=0.2x,avg_bits=3.5 (see smpq run)")
@output_options
@resource_options
def solve(run: Path, task: str | None, budget: str, progress: Any, resources: Any) -> tuple[Any, list[str], int]:
    """Choose the formats for a budget from the scores of a run: policy.json. Does not score again.

    Latency is predicted from the engines that the run has measured.
    """
    from deploy.stages import solve as solve_stage
    from deploy.stages.run_all import open_run
    from smpq.problem.budget import Budget

    parsed = Budget.from_text(budget)
    with open_run(run, progress, resources=resources, task=task) as workspace:
        solution = solve_stage(workspace, parsed)
    record = plain(solution.policy.to_file(workspace.space.groups))
    costs = ", ".join(f"{name} {model.total(solution.policy):.6g}" for name, model in workspace.costs.items())
    return (
        {**record, "value": solution.value},
        [f"policy: {run / 'policy.json'} (value {solution.value:.6g}; {costs})"],
        0,
    )


@smpq.command()
@run_argument
@click.option("--epochs", type=DECIMAL, default=4.0, show_default=True, help="passes over the training data")
@click.option(
    "--lr",
    type=DECIMAL,
    default=0.02,
    show_default=True,
    help="peak learning rate of weights; that of step sizes is a tenth",
)
@click.option(
    "--learn-activations/--fixed-activations",
    default=None,
    help="also train the step sizes of activations  [default: of those below 8 bits]",
)
@click.option(
    "--keep", default="end", show_default=True, help="end, or better: the start where calibration data like it better"
)
@output_options
@resource_options
def finetune(
    run: Path,
    task: str | None,
    epochs: float,
    lr: float,
    learn_activations: bool | None,
    keep: str,
    progress: Any,
    resources: Any,
) -> tuple[Any, list[str], int]:
    """Train the weights of policy.json in their formats: finetuned.safetensors, finetune.json. The task needs training
    data.

    From then on export, build, measure, verify and report use these weights, until policy.json is changed. Delete
    finetuned.safetensors to go back.
    """
    from deploy.stages import read_policy
    from deploy.stages.finetuning import finetune as finetune_stage
    from deploy.stages.run_all import open_run
    from smpq.training.finetune import FineTuneSettings

    settings = FineTuneSettings(
        epochs=epochs, learning_rate=lr, step_learning_rate=lr / 10, learn_activations=learn_activations, keep=keep
    )
    with open_run(run, progress, resources=resources, task=task) as workspace:
        record = finetune_stage(workspace, read_policy(workspace), settings)
    before, after = record.before, record.after
    line = (
        f"fine-tuned: {run / 'finetuned.safetensors'} (on calibration data: value {before.value:.6g} to "
        f"{after.value:.6g}, "
        f"{workspace.task.metric_name} {before.metric:.4f} to {after.metric:.4f})"
    )
    return record, [line], 0


@smpq.command()
@run_argument
@click.option(
    "--format",
    "form",
    default="target",
    show_default=True,
    help="target, or onnx-qdq: plain Q/DQ nodes for trtexec, with its command",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=FURTHER_BATCH,
    help="with onnx-qdq: one batch size, or three (smallest, usual, largest)",
)
@output_options
def export(
    run: Path, task: str | None, form: str, batches: tuple[int, ...], progress: Any
) -> tuple[Any, list[str], int]:
    """Write policy.json as ONNX with Q/DQ nodes, in the form that the target turns into integer kernels:
    model.<target>.onnx.
    """
    from deploy.stages import export as export_stage
    from deploy.stages import read_policy
    from deploy.stages.making import export_qdq
    from deploy.stages.run_all import open_run

    if form not in ("target", "onnx-qdq"):
        raise UserError(f"--format is target or onnx-qdq, not {form!r}")
    workspace = open_run(run, progress, task=task)
    if form == "target":
        path = export_stage(workspace, read_policy(workspace))
        return {"model": str(path)}, [f"model: {path}"], 0
    exported = export_qdq(workspace, read_policy(workspace), batches)
    record = {"model": str(exported.path), "build": list(exported.build), "measured": exported.measured}
    measured = [f"the plan that was measured: {exported.measured}"] if exported.measured is not None else []
    return record, [f"model: {exported.path}", *exported.build, *measured], 0


@smpq.command()
@run_argument
@output_options
def build(run: Path, task: str | None, progress: Any) -> tuple[Any, list[str], int]:
    """Build the engine and the float engine, and check what every layer became: engine.<target>.*, engine.float.*,
    build.json.
    """
    from deploy.stages import build as build_stage
    from deploy.stages import read_policy
    from deploy.stages.run_all import open_run

    workspace = open_run(run, progress, task=task)
    record = build_stage(workspace, read_policy(workspace))
    lines = [f"engine: {run / name}" for name in record.engines]
    lines += [
        f"  {path}: {row.kernel}{'' if row.agrees else '  (not as planned)'}" for path, row in record.kernels.items()
    ]
    return record, lines, 0


@smpq.command()
@run_argument
@click.option(
    "--batch", "batches", multiple=True, type=FURTHER_BATCH, help="a further batch size to time; repeat for several"
)
@device_option
@output_options
def measure(
    run: Path, task: str | None, batches: tuple[int, ...], device: str, progress: Any
) -> tuple[Any, list[str], int]:
    """Time the engine against the float engine: interleaved rounds, intervals, p99 of single calls. Writes
    latency.json.
    """
    from deploy.report.remarks import timing_remarks
    from deploy.stages import measure as measure_stage
    from deploy.stages import read_policy
    from deploy.stages.run_all import open_run
    from deploy.stages.shipping import shipped

    with open_run(run, progress, device=device, task=task) as workspace:
        record = measure_stage(workspace, read_policy(workspace), batches)
        product = shipped(workspace)
    lines = [
        f"batch {row.batch}: {row.ratio:.3f}x of float [{row.ratio_interval.low:.3f}, {row.ratio_interval.high:.3f}]: "
        f"{row.engine_ms:.4g} ms{_tail(row)} against {row.float_ms:.4g} ms, {row.throughput:.4g} samples/s"
        for row in (record.measurement, *record.batches)
    ]
    lines += [
        f"batch {row.batch}: {remark}"
        for row in (record.measurement, *record.batches)
        for remark in timing_remarks(row)
    ]
    lines.append(f"on {record.machine}, {record.measurement.clock}")
    if product is not None:
        lines.append(f"engine: {product}")
    return record, lines, 0


def _tail(row: Any) -> str:
    return f" (p99 of {row.p99_calls} single calls {row.p99_ms:.4g})" if row.p99_ms is not None else ""


@smpq.command()
@run_argument
@click.argument("directory", type=PLACE)
@click.option(
    "--budget", help="limits with a latency, e.g. latency=0.7x (see smpq run)  [default: those of the last bundle]"
)
@output_options
@resource_options
def bundle(
    run: Path, task: str | None, directory: Path, budget: str | None, progress: Any, resources: Any
) -> tuple[Any, list[str], int]:
    """Write the engines to measure next into DIRECTORY, with a runner for a device that this machine cannot reach.

    Carry it there, run python3 runner.py, carry measurements.json back, and go on with smpq feedback.
    """
    from deploy.stages.looping import write_next_bundle
    from deploy.stages.run_all import open_run

    with open_run(run, progress, resources=resources, task=task) as workspace:
        record = write_next_bundle(workspace, budget, directory)
    count = len(record.candidates)
    return (
        record,
        [
            (
                f"bundle: {directory} ({count} engines); on the device: python3 runner.py; then: smpq feedback {run} "
                "measurements.json"
            )
        ],
        0,
    )


@smpq.command()
@run_argument
@click.argument("measurements", type=PLACE)
@output_options
@resource_options
def feedback(
    run: Path, task: str | None, measurements: Path, progress: Any, resources: Any
) -> tuple[Any, list[str], int]:
    """Take in the MEASUREMENTS of a bundle: policy.json is the best policy that they show, and the model for the target
    is exported.

    Says whether other engines should be measured. Exit code 1 means that no engine has met the budget yet.
    """
    from deploy.stages.looping import take_feedback
    from deploy.stages.run_all import open_run

    with open_run(run, progress, resources=resources, task=task) as workspace:
        record = take_feedback(workspace, measurements)
    state = "meets the budget" if record.met else "does not meet the budget"
    following = (
        f"{record.proposals} more engines should be measured: smpq bundle {run} DIRECTORY"
        if record.proposals
        else record.stop_reason
    )
    lines = [
        f"policy: {run / 'policy.json'} (measured {record.ratio:.3f}x of float, {state})",
        f"model: {record.model}",
        *([f"engine: {record.engine} beside the measurements on the device"] if record.engine is not None else []),
        following,
    ]
    return record, lines, 0 if record.met else NOT_MET


@smpq.command()
@run_argument
@click.option(
    "--estimator",
    default="adaptive",
    show_default=True,
    help="adaptive, permutation, antithetic, stratified, truncated, exact",
)
@click.option("--evaluations", type=WHOLE, help="policies that may be evaluated  [default: half as many as scoring]")
@click.option(
    "--precision", type=DECIMAL, default=0.0, help="stop when all standard errors are below this share of the spread"
)
@output_options
@resource_options
def explain(run: Path, task: str | None, progress: Any, resources: Any, **options: Any) -> tuple[Any, list[str], int]:
    """Say what each layer's format costs in the policy of a run: Shapley values with intervals, contributions.json."""
    from deploy.stages import read_policy
    from deploy.stages.explaining import Explanation
    from deploy.stages.explaining import explain as explain_stage
    from deploy.stages.run_all import open_run

    explanation = Explanation(**options)
    with open_run(run, progress, resources=resources, task=task) as workspace:
        record = explain_stage(workspace, read_policy(workspace), explanation)
    rows = sorted(record.contributions, key=lambda row: row.value)
    lines = [f"{r.value:+.3g} [{r.interval.low:+.3g}, {r.interval.high:+.3g}]  {r.group} {r.format}" for r in rows]
    return record, [*lines, f"together {record.total:+.4g} in {record.value}, {record.evaluations} evaluations"], 0


@smpq.command()
@run_argument
@output_options
def verify(run: Path, task: str | None, progress: Any) -> tuple[Any, list[str], int]:
    """Run the evaluation data through PyTorch, ONNX and the engine, and name the stage that lost points. Writes
    verify.json.
    """
    from deploy.stages import read_policy
    from deploy.stages import verify as verify_stage
    from deploy.stages.run_all import open_run

    workspace = open_run(run, progress, task=task)
    record = verify_stage(workspace, read_policy(workspace))
    lines = [
        f"{name:>10}: {stage.mean:.4f}" if stage.mean is not None else f"{name:>10}: not run: {stage.not_run}"
        for name, stage in record.stages.items()
    ]
    return record, [*lines, record.explanation], 0


@smpq.command()
@run_directory
@output_options
def report(run: Path, progress: Any) -> tuple[Any, list[str], int]:
    """Write report.json and report.html from what the run holds. Exit code 1 when the budget is not met."""
    from deploy.report.page import summary_lines
    from deploy.stages.run_all import report_on

    record = report_on(run, progress)
    lines = [*summary_lines(record), "", f"report: {run / 'report.html'}"]
    return record, lines, 0 if record.met or not record.limits else NOT_MET


@smpq.command()
@run_argument
@device_option
@output_options
def profile(run: Path, task: str | None, device: str, progress: Any) -> tuple[Any, list[str], int]:
    """Show where the time of the engine goes on an NVIDIA GPU: by kernel, beside what was planned. Writes profile.json,
    profile.svg.

    Reads what smpq measure has found on the device, and measures only where that is missing.
    """
    from deploy.report.profile_lines import profile_lines
    from deploy.stages import read_policy
    from deploy.stages.profiling import PICTURE
    from deploy.stages.profiling import profile as profile_stage
    from deploy.stages.run_all import open_run

    with open_run(run, progress, device=device, task=task) as workspace:
        record = profile_stage(workspace, read_policy(workspace))
    return record, [*profile_lines(record), f"picture: {run / PICTURE}"], 0


@smpq.command()
@device_option
@click.option("--target", help="judge by what this target needs, e.g. jetson-orin  [default: any target will do]")
@output_options
def doctor(device: str, target: str | None, progress: Any) -> tuple[Any, list[str], int]:
    """Say what this machine or a device has, what works there, and the exact commands that mend what does not.

    Looks at Python, driver, GPUs, clocks, TensorRT, ONNX Runtime, packages, memory and disk. Nothing is left on a
    device. Exit code 2 means that something has to be changed first.
    """
    from deploy.doctor.examine import examine
    from deploy.doctor.text import doctor_lines

    with progress.step(f"examine {device or 'this machine'}"):
        record = examine(device, target)
    return record, doctor_lines(record), 0 if record.met else WRONG_INPUT


@smpq.command()
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def methods(as_json: bool) -> None:
    """List the methods that smpq run --method takes: what they do, the paper, what they need, and what they cost."""
    from deploy.commands.methods_table import described, table

    if as_json:
        click.echo(json.dumps(described(), indent=1))
    else:
        Console().print(table(), "Costs are counted in passes over the calibration data, besides calibration itself.")


@smpq.command()
@click.argument("name", required=False)
@click.option("--sm", "compute_capabilities", multiple=True, help="compute capability, as sm87; repeat for several")
@click.option("--json", "as_json", is_flag=True, help="print as JSON; without a name, all tables")
def targets(name: str | None, compute_capabilities: tuple[str, ...], as_json: bool) -> None:
    """List the targets, or show which format is real on which operator of one, and how we know.

    For example smpq targets jetson-orin, or smpq targets tensorrt-10.3 --sm sm87.
    """
    from deploy.targets.families import FAMILIES
    from deploy.targets.tables import LEGEND, described, overview, rules, summary
    from deploy.targets.target import device_names, target_from_name

    if compute_capabilities and name is None:
        raise UserError("--sm needs the name of a target, as in: smpq targets tensorrt-10.3 --sm sm87")
    names = [name] if name is not None else [*FAMILIES, *device_names()]
    chosen = [target_from_name(each, compute_capabilities, look=name is not None) for each in names]
    if as_json:
        click.echo(json.dumps({target.name: described(target) for target in chosen}, indent=1))
    elif name is None:
        Console().print(overview(), "smpq targets NAME shows what becomes of each format there, and how we know.")
    else:
        Console().print(summary(chosen[0]), rules(chosen[0]), LEGEND)


if __name__ == "__main__":
    main()
