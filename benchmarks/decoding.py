"""A language model that writes with a cache: prefill and decoding by one engine, against PyTorch token by token.

Usage: decoding.py DATA_DIR [--budget size=0.35x] [--tokens 200] [--rounds 5]

DATA_DIR holds the files of `examples/language.py`. Two `smpq run`s of `examples/decoding.py` for `ort-cpu`, with the formats
that the target offers by itself, and with weights alone quantised. Then each pair writes so many tokens behind each
prompt, both fed with the tokens of the first: your module and the float engine, the fake-quantised model and the engine.
`error` is the largest difference of two logits, of all tokens of all prompts, and `same` the share of tokens that both
would have written. Tokens per CPU second are those of a single thread, the engines in turn. The bars: errors of at most
1e-3 and 1e-2.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import torch
from records import keep
from rich.console import Console
from torch import Tensor

from calib.task import Batch
from deploy.run.settings import Settings
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run, run_stages
from deploy.stages.stage_runners import built_engine_runner, fake_quant_runner
from deploy.terminal.progress import Progress
from examples.decoding import Decoding, Step, empty_cache
from smpq.problem.budget import Budget

PROMPTS = ("Once upon a time", "The little dog", "One day, a girl named Lily", "It was raining")
FORMATS = ("", "w4a16b64,w8a16b64,fp32")
BARS = {"float": 1e-3, "quantised": 1e-2}


def session(path: Path) -> Step:
    """Return an engine in plain onnxruntime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    found = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in found.get_inputs()]

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        made = found.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        return tuple(map(torch.from_numpy, made))

    return step


def together(first: Step, second: Step, prompt: Tensor, count: int) -> tuple[float, int]:
    """Return the largest difference of the logits behind a prompt, and how many tokens both would have written."""
    caches = [empty_cache(1), empty_cache(1)]
    tokens, worst, same = prompt, 0.0, 0
    for _ in range(count):
        found = []
        for number, step in enumerate((first, second)):
            logits, *made = step(tokens, *caches[number])
            caches[number] = tuple(torch.cat(pair, 3) for pair in zip(caches[number], made, strict=True))
            found.append(logits)
        worst = max(worst, float((found[0] - found[1]).abs().max()))
        ours, other = (logits[:, -1:].argmax(-1) for logits in found)
        same += bool(ours == other)
        tokens = ours
    return worst, same


def speeds(engines: dict[str, Step], prompt: Tensor, count: int, rounds: int) -> dict[str, float]:
    """Return the tokens that each engine writes in a second of this process, the best of some rounds in turn."""
    best = dict.fromkeys(engines, 0.0)
    for _ in range(rounds):
        for name, step in engines.items():
            caches, tokens = empty_cache(1), prompt
            start = time.process_time()
            for _ in range(count):
                logits, *made = step(tokens, *caches)
                caches = tuple(torch.cat(pair, 3) for pair in zip(caches, made, strict=True))
                tokens = logits[:, -1:].argmax(-1)
            best[name] = max(best[name], count / (time.process_time() - start))
    return {name: round(value, 1) for name, value in best.items()}


def row(data: Path, formats: str, options: argparse.Namespace) -> dict:
    """Run the job with some formats, and compare what came of it."""
    weights = data / "stories260k.safetensors"
    settings = Settings("examples.decoding:task", data=str(data), weights=str(weights), effort="fast", formats=formats)
    start = time.process_time()
    with (
        tempfile.TemporaryDirectory() as directory,
        open_run(Path(directory) / "run", Progress(Console(stderr=True)), settings) as workspace,
        torch.no_grad(),
    ):
        report = run_stages(workspace, Budget.from_text(options.budget), None, "shapley")
        seconds = time.process_time() - start
        assert isinstance(workspace.task, Decoding)
        prompts = [torch.tensor([workspace.task.tokenizer.encode(text)]) for text in PROMPTS]
        policy = read_policy(workspace)
        fake, built = fake_quant_runner(workspace, policy), built_engine_runner(workspace, 1)
        assert not isinstance(built, str)
        plain = session(workspace.run.file("engine.float.onnx"))
        engines = {"float": plain, "quantised": session(workspace.run.file("engine.ort-cpu.onnx"))}
        return {
            "formats": formats or "the target's",
            "cpu_seconds": round(seconds, 1),
            "nats": {name: round(-stage.mean, 4) for name, stage in report.verification.stages.items()},
            "float": compared(workspace.task.model(), plain, prompts, options.tokens, BARS["float"]),
            "quantised": compared(_stepped(fake), _stepped(built), prompts, options.tokens, BARS["quantised"]),
            "tokens_per_cpu_second": speeds(engines, prompts[0], options.tokens, options.rounds),
            "policy": dict(report.policy),
        }


def compared(first: Step, second: Step, prompts: list[Tensor], count: int, bar: float) -> dict:
    """Return how far two networks are apart on all prompts."""
    found = [together(first, second, prompt, count) for prompt in prompts]
    same = sum(alike for _, alike in found) / (count * len(prompts))
    return {"error": max(worst for worst, _ in found), "bar": bar, "same": same}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--budget", default="size=0.35x")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row(options.data, formats, options) for formats in FORMATS]
    command = f"PYTHONPATH=. python benchmarks/decoding.py DATA_DIR --budget {options.budget}"
    keep("decoding", command, [0], rows, tokens=options.tokens, prompts=len(PROMPTS))
    return 0


def _stepped(compute: Callable[[Batch], tuple[Tensor, ...]]) -> Step:
    return lambda *inputs: compute(Batch(inputs, None))


if __name__ == "__main__":
    sys.exit(main())
