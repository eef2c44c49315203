"""A language model that writes with a cache: prefill and decoding by one engine, against PyTorch token by token.

Usage: decoding.py DATA [--model stories260k] [--weights W] [--budget size=0.55x] [--tokens 200] [--rounds 5]

DATA and W as in `language.py`. Two `smpq run`s of the model with its cache (`examples/decoding.py`,
`examples/shakespeare.py`) for `ort-cpu`, with the formats that the target offers by itself, and with weights alone
quantised. Then pairs write so many tokens behind each prompt, both fed with the tokens of the first:

- `float`: your module and the float engine.
- `file`: the fake-quantised model and the ONNX file computed as it is written, in float.
- `engine`: the fake-quantised model and the engine. MatMulNBits rounds its inputs to 8 bits, block by block.
- `kernels`: the engine and a fake-quantised model that rounds those inputs too.

`error` is the largest difference of two logits, of all tokens of all prompts, `median` that of the largest differences
of each token, and `same` the share of tokens that both would have written. Tokens per CPU second are those of a single
thread, the engines in turn. The bars: errors of at most 1e-3 for float and 1e-2 for the others.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from decoders import MODELS, speeds, step_of, stepped
from int2_blocks import InBlocks
from records import keep
from rich.console import Console
from torch import Tensor

from calib.network.execution import Edits
from calib.tasks.decoding import DecodingTask, Step, grown
from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run, run_stages
from deploy.stages.stage_runners import stage_runners
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy

PROMPTS, PROMPT_TOKENS = 4, 8
FORMATS = {"stories260k": ("", "w4a16b64,w8a16b64,fp32"), "shakespeare": ("", "w2a16b128,w4a16b128,w8a16b128,fp32")}
SMALL_BLOCK = 32
"""Of a weight with a scale for each channel, as ONNX Runtime lays it out."""
BARS = {"float": 1e-3, "file": 1e-2, "engine": 1e-2, "kernels": 1e-2}


def together(first: Step, second: Step, prompt: Tensor, count: int, cache: tuple[Tensor, ...]) -> tuple[list, int]:
    """Return the largest difference of the logits behind each token, and how many tokens both would have written."""
    caches, tokens, apart, same = [cache, cache], prompt, [], 0
    for _ in range(count):
        found = []
        for number, step in enumerate((first, second)):
            logits, *made = step(tokens, *caches[number])
            caches[number] = grown(caches[number], made)
            found.append(logits)
        apart.append(float((found[0] - found[1]).abs().max()))
        ours, other = (logits[:, -1:].argmax(-1) for logits in found)
        same += bool(ours == other)
        tokens = ours
    return apart, same


def compared(pair: tuple[Step, Step], prompts: list[Tensor], count: int, cache: tuple[Tensor, ...], bar: float) -> dict:
    """Return how far two networks are apart on all prompts."""
    found = [together(*pair, prompt, count, cache) for prompt in prompts]
    apart = [each for row, _ in found for each in row]
    same = sum(alike for _, alike in found) / (count * len(prompts))
    return {"error": max(apart), "median": statistics.median(apart), "bar": bar, "same": same}


def rounding_inputs(workspace: Workspace, policy: Policy) -> Step:
    """Return the fake-quantised model whose layers with blocks round their inputs as MatMulNBits does."""
    edits, plan = workspace.fake_quantizer.edits(workspace.plan(policy)), workspace.plan(policy)
    inside = {
        (tensor, call): InBlocks(plan.weights[unit.path].block or SMALL_BLOCK)
        for unit in workspace.space.units
        if unit.path in plan.weights
        for tensor, call in zip(unit.inputs, unit.calls, strict=True)
        if (tensor, call) not in edits.edges and tensor not in edits.sources
    }
    more: Edits = replace(edits, edges={**edits.edges, **inside})
    return lambda *inputs: workspace.traced.run(inputs, more)


def row(formats: str, options: argparse.Namespace) -> dict:
    """Run the job with some formats, and compare what came of it."""
    weights = options.weights or options.data / "stories260k.safetensors"
    settings = Settings(
        MODELS[options.model][0], data=str(options.data), weights=str(weights), effort="fast", formats=formats
    )
    start = time.process_time()
    with (
        tempfile.TemporaryDirectory() as directory,
        open_run(Path(directory) / "run", Progress(Console(stderr=True)), settings) as workspace,
        torch.no_grad(),
    ):
        report = run_stages(workspace, Budget.from_text(options.budget), None, "shapley")
        seconds, task, policy = time.process_time() - start, workspace.task, read_policy(workspace)
        assert isinstance(task, DecodingTask)
        cache = task.empty_cache(1)
        rows = torch.cat([batch.inputs[0] for batch in task.evaluation()[:PROMPTS]])
        prompts = list(rows[:PROMPTS, :PROMPT_TOKENS].split(1))
        found: dict[str, Any] = stage_runners(workspace, policy, Path(directory))
        steps = {name: stepped(runner) for name, runner in found.items()}
        plain = step_of(workspace, workspace.run.file("engine.float.onnx"))
        pairs = {
            "float": (task.model(), plain), "file": (steps["fake_quant"], steps["onnx"]),
            "engine": (steps["fake_quant"], steps["engine"]),
            "kernels": (rounding_inputs(workspace, policy), steps["engine"]),
        }  # fmt: skip
        engines = {"float": plain, "quantised": steps["engine"]}
        return {
            "formats": formats or "the target's",
            "cpu_seconds": round(seconds, 1),
            "nats": {name: round(-stage.mean, 4) for name, stage in report.verification.stages.items()},
            **{name: compared(pair, prompts, options.tokens, cache, BARS[name]) for name, pair in pairs.items()},
            "tokens_per_cpu_second": speeds(engines, prompts[0], options.tokens, options.rounds, cache),
            "policy": dict(report.policy),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", choices=MODELS, default=next(iter(MODELS)))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--budget", default="size=0.55x")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row(formats, options) for formats in FORMATS[options.model]]
    given = f"TEXT --model {options.model} --weights WEIGHTS" if options.weights else "DATA_DIR"
    command = f"PYTHONPATH=.:benchmarks python benchmarks/decoding.py {given} --budget {options.budget}"
    keep(MODELS[options.model][1], command, [0], rows, tokens=options.tokens, prompts=PROMPTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
