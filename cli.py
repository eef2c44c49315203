"""The command line: its commands are in `deploy/commands/`; how it ends is said here."""

from __future__ import annotations

import sys

import click

from calib.errors import UserError
from calib.heap import keep_freed_blocks
from calib.threads import wait_asleep
from deploy.commands import comparing, curving, looking, making, measuring, searching, training
from deploy.commands.internal_error import InternalError
from deploy.commands.options import WRONG_INPUT
from deploy.terminal.printable import printable
from deploy.terminal.signals import Stopped, stopped_by_signals

INTERNAL_ERROR = 70
_LONGEST_MESSAGE = 4000


def main() -> None:
    """Run the command line: a wrong input is one message and exit code 2, a bug of ours is one message and exit code
    70.
    """
    keep_freed_blocks()
    wait_asleep()
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
    reconstruct    -> finetuned.*        the weights brought back to what the float network gives, without labels
    export         -> model.*.onnx       the plan as ONNX with Q/DQ nodes for the target
    build          -> engine.*           the engine, and what each layer became in it
    measure        -> latency.json       the engine against the float engine, interleaved
    curve          -> curve.json         engines across the whole range: latency and accuracy, with intervals
    take           -> policy.json        a point of the curve in place of a budget
    bundle, feedback                     measure on a device without a network connection (with one: run --device)
    explain        -> contributions.json what each layer's format costs, with intervals
    verify         -> verify.json        the evaluation data through PyTorch, ONNX and engine
    report         -> report.html        all of it on one page
    compare                              runs of one network side by side: plans, scores, accuracy, latency, cost
    profile        -> profile.json, .svg where the time of an engine goes, layer by layer, on an NVIDIA GPU
    doctor                               what a machine or a device has and lacks, and the commands that mend it
    methods, targets                     the methods that choose formats; the devices, and what is real on each

    Exit codes: 0 done, 1 the budget was not met, 2 wrong input, 70 a bug in smpq.
    """  # noqa: D301 - click reads the backspace
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (
    searching.run, searching.score, searching.solve, searching.explain, curving.curve, curving.take,
    training.train_supernet, training.finetune, training.reconstruct, making.export, making.build,
    measuring.measure, measuring.profile, measuring.bundle, measuring.feedback, measuring.doctor, looking.verify,
    looking.report, comparing.compare, looking.methods, looking.targets,
):  # fmt: skip
    smpq.add_command(_command)


if __name__ == "__main__":
    main()
