"""The command line: each command parses, calls one library function, and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from calib.errors import UserError

WRONG_INPUT = 2
NOT_MET = 1


def main() -> None:
    """Run the command line; a wrong input is one message and exit code 2."""
    try:
        smpq(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "smpq"
        _fail(f"{error.format_message()} See {where} --help")
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what the run had finished is kept, the same command goes on from there", err=True)
        sys.exit(130)


def _fail(message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(WRONG_INPUT)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="smpq")
@click.pass_context
def smpq(context: click.Context) -> None:
    r"""Give a PyTorch model, data and a budget; get the most accurate mixed-precision engine that meets it, with proof.

    \b
    smpq run --task digits --budget latency=0.8x --out runs/digits

    does everything. The other commands are its stages. Each reads and writes the run directory, so you can stop, look,
    edit policy.json by hand, and go on:

    \b
    score   -> scores.json      what each format of each layer contributes, with intervals
    train-supernet -> supernet.* the paper's way to scores: smpq run --method smpq
    solve   -> policy.json      the best formats for a budget; scores are used again
    finetune -> finetuned.*     the weights trained in their formats, if the task has training data
    export  -> model.*.onnx     the plan as ONNX with Q/DQ nodes for the target
    build   -> engine.*         the engine, and what each layer became in it
    measure -> latency.json     the engine against the float engine, interleaved
    explain -> contributions.json what each layer's format costs, with intervals
    verify  -> verify.json      the evaluation data through PyTorch, ONNX and engine
    report  -> report.html      all of it on one page

    Exit codes: 0 done, 1 the budget was not met, 2 wrong input.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what is searched; a run keeps them."""
    options = [
        click.option("--task", "task", required=True, help="digits, cifar10-resnet20, or your own as package.module:object"),
        click.option("--data", type=click.Path(path_type=Path), help="the data the task needs (a directory)"),
        click.option(
            "--weights", type=click.Path(path_type=Path), help="the weights the task needs (.safetensors or a state_dict)"
        ),
        click.option(
            "--out", type=click.Path(path_type=Path), required=True, help="the run directory; a run that is there goes on"
        ),
        click.option(
            "--target", default="ort-cpu", show_default=True, help="ort-cpu, tensorrt-rtx, tensorrt or simulate (smpq targets)"
        ),
        click.option(
            "--sm", "compute_capabilities", multiple=True, help="compute capability to build for, as sm86; repeat for several"
        ),
        click.option("--formats", default="", help="formats to choose from, e.g. w8a8,w4a16b128,fp32  [default: the target's]"),
        click.option("--size-only", is_flag=True, help="also offer formats that are stored small but computed in float"),
        click.option("--observer", default="mse", show_default=True, help="range of activations: mse, minmax, percentile, entropy"),
        click.option("--rounding", default="gptq", show_default=True, help="rounding of weights: gptq, nearest"),
        click.option("--value", default="kl", show_default=True, help="what a policy is judged by: kl (no labels), loss, metric"),
        click.option("--samples", type=int, default=512, show_default=True, help="calibration samples that judge a policy"),
        click.option("--effort", default="normal", show_default=True, help="how long to search: fast, normal, thorough"),
        click.option("--evaluations", type=int, help="policies that scoring may evaluate  [default: by --effort]"),
        click.option(
            "--precision", type=float, default=0.0, help="stop scoring when all standard errors are below this share of the spread"
        ),
        click.option("--stable", is_flag=True, help="stop scoring when the decision for the budget no longer changes"),
        click.option("--batch", type=int, default=1, show_default=True, help="batch size of the latency"),
        click.option("--seed", type=int, default=0, show_default=True, help="seed of everything random"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _resource_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what a run is computed with; they may change from command to command. Passed on as `resources`."""

    @click.option("--workers", type=int, help="processes that evaluate  [default: 1, this one; with --ray all of the cluster]")
    @click.option(
        "--ray", "address", help="evaluate on a Ray cluster: local (one on this machine), auto, host:port or ray://host:port"
    )
    @click.option(
        "--torch-device",
        default="auto",
        show_default=True,
        help="where PyTorch evaluates: auto (a GPU if there is one), cpu, cuda, cuda:N",
    )
    @click.option("--memory-limit", type=float, metavar="MB", help="memory that the activations of one evaluation may take")
    @wraps(command)
    def wrapped(
        *args: Any, workers: int | None, address: str | None, torch_device: str, memory_limit: float | None, **kwargs: Any
    ) -> tuple[Any, list[str], int]:
        from smpq.workers.resources import Resources

        result: tuple[Any, list[str], int] = command(
            *args, resources=Resources(workers, address, memory_limit, torch_device), **kwargs
        )
        return result

    return wrapped


def _run_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("run", type=click.Path(path_type=Path))(command)


def _output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json` and `--quiet`, and the library loaded only when a command really runs: `--help` stays quick."""

    @click.option("--json", "as_json", is_flag=True, help="print the result as JSON on standard output, and nothing else there")
    @click.option("--quiet", is_flag=True, help="no progress on standard error")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
        from deploy.progress import Progress

        progress = Progress(Console(stderr=True, quiet=quiet))
        result, lines, code = command(*args, progress=progress, **kwargs)
        if as_json:
            click.echo(json.dumps(result, indent=1))
        else:
            for line in lines:
                click.echo(line)
        if code:
            sys.exit(code)

    return wrapped


def _settings(options: dict[str, Any]) -> Any:
    from deploy.run import Settings

    paths = {name: str(options[name].resolve()) if options[name] is not None else None for name in ("data", "weights")}
    return Settings(**{**options, **paths})


@smpq.command("run")
@_task_options
@click.option(
    "--budget", required=True, help="limits, e.g. latency=0.65x or size=0.2x,avg_bits=3.5; x is a fraction of the float model"
)
@click.option(
    "--finetune", type=float, help="epochs of fine-tuning on the task's training data  [default: 0; 4 with --method smpq or dmpq]"
)
@click.option(
    "--method",
    default="game",
    show_default=True,
    help="where scores come from: game (formats of the calibrated model, no training), smpq or dmpq (a supernet; see train-supernet)",
)
@_output_options
@_resource_options
def run_command(
    budget: str, finetune: float | None, method: str, out: Path, progress: Any, resources: Any, **options: Any
) -> tuple[Any, list[str], int]:
    """Search, fine-tune with --finetune, export, build, measure, verify and report: the whole job.

    Ends with the answers and the path of report.html. Exit code 1 means that the budget was not met; the closest engine
    is in the run all the same. The same command on an unfinished run goes on where it stopped.
    """
    from deploy.pipeline import run_all
    from deploy.report import summary_lines
    from smpq.finetune import FineTuneSettings

    epochs = finetune if finetune is not None else 0.0 if method == "game" else FineTuneSettings.epochs
    tuning = FineTuneSettings(epochs=epochs) if epochs else None
    report = run_all(out, _settings(options), budget, progress, tuning, method, resources)
    lines = [*summary_lines(report), "", f"report: {out / 'report.html'}"]
    return report, lines, 0 if report["met"] else NOT_MET


@smpq.command()
@_task_options
@_output_options
@_resource_options
def score(out: Path, progress: Any, resources: Any, **options: Any) -> tuple[Any, list[str], int]:
    """Score every format of every layer by its Shapley value: scores.json. Starts a run; any budget can be solved from it later."""
    from deploy.pipeline import open_run
    from deploy.stages import score as score_stage

    with open_run(out, progress, _settings(options), resources) as prepared:
        scores = score_stage(prepared).to_json()
    summary = f"{scores['evaluations']} evaluations, {scores['permutations']} permutations, stopped by {scores['stop_reason']}"
    return scores, [f"scores: {out / 'scores.json'} ({summary})"], 0


@smpq.command("train-supernet")
@_task_options
@click.option(
    "--epochs", type=int, default=10, show_default=True, help="Shapley values are estimated after each of the second half"
)
@click.option("--steps", type=int, help="batches an epoch  [default: all of the training data]")
@click.option("--walks", type=int, default=10, show_default=True, help="permutations for each estimate")
@click.option("--held-out", type=int, default=512, show_default=True, help="calibration samples for each estimate")
@click.option(
    "--gamma", type=float, default=0.5, show_default=True, help="walks end below this share of the supernet's metric; 0: never"
)
@click.option("--complexity", type=float, default=0.0, show_default=True, help="weight of the expected bit operations in the loss")
@click.option("--contribution", default="metric", show_default=True, help="what operations contribute to: metric, loss, kl")
@_output_options
def train_supernet(
    epochs: int, steps: int | None, walks: int, held_out: int, gamma: float, complexity: float, contribution: str, out: Path,
    progress: Any, **options: Any,
) -> tuple[Any, list[str], int]:  # fmt: skip
    """Train a network that holds all formats of every layer, and score them: supernet.safetensors, supernet.json.

    The paper's method; smpq run --method smpq (Shapley values) or dmpq (softmax parameters) goes on from there. The task needs
    training data. The same command on an unfinished training goes on after its last epoch.
    """
    from deploy.pipeline import open_run
    from deploy.stages.supernet import train_supernet as supernet_stage
    from smpq.supernet_game import GameSettings
    from smpq.supernet_training import SupernetSettings

    settings = SupernetSettings(
        epochs=epochs,
        steps=steps,
        walks=walks,
        samples=held_out,
        gamma=gamma,
        complexity=complexity,
        game=GameSettings((contribution,)),
    )
    with open_run(out, progress, _settings(options)) as prepared:
        _, state = supernet_stage(prepared, settings)
    found = state.contributions[contribution]
    line = f"supernet: {out / 'supernet.safetensors'} ({found.updates} estimates, {len(found.walks)} walks, {found.truncated} of them cut)"
    return prepared.run.read_json("supernet.json"), [line], 0


@smpq.command()
@_run_argument
@click.option("--budget", required=True, help="limits, e.g. size=0.2x,avg_bits=3.5 (see smpq run)")
@_output_options
@_resource_options
def solve(run: Path, budget: str, progress: Any, resources: Any) -> tuple[Any, list[str], int]:
    """Choose the formats for a budget from the scores of a run: policy.json. Does not score again.

    Latency is predicted from the engines that the run has measured.
    """
    from deploy.pipeline import open_run
    from deploy.stages import solve as solve_stage
    from smpq.budget import Budget

    parsed = Budget.from_text(budget)
    with open_run(run, progress, resources=resources) as prepared:
        solution = solve_stage(prepared, parsed)
    record = solution.policy.to_json(prepared.space.groups)
    costs = ", ".join(f"{name} {model.total(solution.policy):.6g}" for name, model in prepared.costs.items())
    return {**record, "value": solution.value}, [f"policy: {run / 'policy.json'} (value {solution.value:.6g}; {costs})"], 0


@smpq.command()
@_run_argument
@click.option("--epochs", type=float, default=4.0, show_default=True, help="passes over the training data")
@click.option(
    "--lr", type=float, default=0.02, show_default=True, help="peak learning rate of weights; that of step sizes is a tenth"
)
@click.option(
    "--learn-activations/--fixed-activations",
    default=None,
    help="also train the step sizes of activations  [default: of those below 8 bits]",
)
@click.option("--keep", default="end", show_default=True, help="end, or better: the start where calibration data like it better")
@_output_options
def finetune(
    run: Path, epochs: float, lr: float, learn_activations: bool | None, keep: str, progress: Any
) -> tuple[Any, list[str], int]:
    """Train the weights of policy.json in their formats: finetuned.safetensors, finetune.json. The task needs training data.

    From then on export, build, measure, verify and report use these weights, until policy.json is changed. Delete
    finetuned.safetensors to go back.
    """
    from deploy.finetuning import finetune as finetune_stage
    from deploy.pipeline import open_run
    from deploy.stages import read_policy
    from smpq.finetune import FineTuneSettings

    settings = FineTuneSettings(
        epochs=epochs, learning_rate=lr, step_learning_rate=lr / 10, learn_activations=learn_activations, keep=keep
    )
    prepared = open_run(run, progress)
    record = finetune_stage(prepared, read_policy(prepared), settings)
    before, after = record["before"], record["after"]
    line = (
        f"fine-tuned: {run / 'finetuned.safetensors'} (on calibration data: value {before['value']:.6g} to {after['value']:.6g}, "
        f"{prepared.task.metric_name} {before['metric']:.4f} to {after['metric']:.4f})"
    )
    return record, [line], 0


@smpq.command()
@_run_argument
@_output_options
def export(run: Path, progress: Any) -> tuple[Any, list[str], int]:
    """Write policy.json as ONNX with Q/DQ nodes, in the form that the target turns into integer kernels: model.<target>.onnx."""
    from deploy.pipeline import open_run
    from deploy.stages import export as export_stage
    from deploy.stages import read_policy

    prepared = open_run(run, progress)
    path = export_stage(prepared, read_policy(prepared))
    return {"model": str(path)}, [f"model: {path}"], 0


@smpq.command()
@_run_argument
@_output_options
def build(run: Path, progress: Any) -> tuple[Any, list[str], int]:
    """Build the engine and the float engine, and check what every layer became: engine.<target>.*, engine.float.*, build.json."""
    from deploy.pipeline import open_run
    from deploy.stages import build as build_stage
    from deploy.stages import read_policy

    prepared = open_run(run, progress)
    record = build_stage(prepared, read_policy(prepared))
    lines = [f"engine: {run / name}" for name in record["engines"]]
    lines += [f"  {path}: {k['kernel']}{'' if k['agrees'] else '  (not as planned)'}" for path, k in record["kernels"].items()]
    return record, lines, 0


@smpq.command()
@_run_argument
@_output_options
def measure(run: Path, progress: Any) -> tuple[Any, list[str], int]:
    """Time the engine against the float engine: interleaved rounds, CPU clock, one thread, bootstrap interval. Writes latency.json."""
    from deploy.pipeline import open_run
    from deploy.stages import measure as measure_stage
    from deploy.stages import read_policy

    prepared = open_run(run, progress)
    record = measure_stage(prepared, read_policy(prepared))
    low, high = record["interval"]
    line = (
        f"{record['ratio']:.3f}x of float [{low:.3f}, {high:.3f}]: {record['engine_ms']:.4g} ms against {record['float_ms']:.4g} ms"
    )
    return record, [line], 0


@smpq.command()
@_run_argument
@click.option(
    "--estimator", default="adaptive", show_default=True, help="adaptive, permutation, antithetic, stratified, truncated, exact"
)
@click.option("--evaluations", type=int, help="policies that may be evaluated  [default: half as many as scoring]")
@click.option("--precision", type=float, default=0.0, help="stop when all standard errors are below this share of the spread")
@_output_options
@_resource_options
def explain(run: Path, progress: Any, resources: Any, **options: Any) -> tuple[Any, list[str], int]:
    """Say what each layer's format costs in the policy of a run: Shapley values with intervals, contributions.json."""
    from deploy.pipeline import open_run
    from deploy.stages import read_policy
    from deploy.stages.explaining import Explanation
    from deploy.stages.explaining import explain as explain_stage

    explanation = Explanation(**options)
    with open_run(run, progress, resources=resources) as prepared:
        record = explain_stage(prepared, read_policy(prepared), explanation)
    rows = sorted(record["contributions"], key=lambda row: row["value"])
    lines = [f"{r['value']:+.3g} [{r['interval'][0]:+.3g}, {r['interval'][1]:+.3g}]  {r['group']} {r['format']}" for r in rows]
    return record, [*lines, f"together {record['total']:+.4g} in {record['value']}, {record['evaluations']} evaluations"], 0


@smpq.command()
@_run_argument
@_output_options
def verify(run: Path, progress: Any) -> tuple[Any, list[str], int]:
    """Run the evaluation data through PyTorch, ONNX and the engine, and name the stage that lost points. Writes verify.json."""
    from deploy.pipeline import open_run
    from deploy.stages import read_policy
    from deploy.stages import verify as verify_stage

    prepared = open_run(run, progress)
    record = verify_stage(prepared, read_policy(prepared))
    lines = [
        f"{name:>10}: {stage['mean']:.4f}" if stage["not_run"] is None else f"{name:>10}: not run: {stage['not_run']}"
        for name, stage in record["stages"].items()
    ]
    return record, [*lines, record["explanation"]], 0


@smpq.command()
@_run_argument
@_output_options
def report(run: Path, progress: Any) -> tuple[Any, list[str], int]:
    """Write report.json and report.html from what the run holds. Exit code 1 when the budget is not met."""
    from deploy.pipeline import open_run, write_reports
    from deploy.report import summary_lines
    from deploy.stages import read_policy

    prepared = open_run(run, progress)
    record = write_reports(prepared, read_policy(prepared))
    return (
        record,
        [*summary_lines(record), "", f"report: {run / 'report.html'}"],
        0 if record["met"] or not record["limits"] else NOT_MET,
    )


@smpq.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def targets(name: str | None, as_json: bool) -> None:
    """Show which format is real on which operator of a target: native, computed in float, or refused, and why."""
    from deploy.targets import TARGET_NAMES, table, target_from_name

    chosen = [target_from_name(name)] if name else [target_from_name(each) for each in TARGET_NAMES]
    if as_json:
        click.echo(json.dumps({target.name: [row.to_json() for row in table(target)] for target in chosen}, indent=1))
        return
    console = Console()
    for target in chosen:
        grid = Table(title=f"{target.name} (float baseline {target.reference})", title_justify="left")
        for column in ("operators", "formats", "status", "note"):
            grid.add_column(column, overflow="fold")
        for row in table(target):
            grid.add_row(", ".join(row.operators), ", ".join(row.formats), row.status, row.note)
        console.print(grid)


if __name__ == "__main__":
    main()
