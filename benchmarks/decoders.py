"""Decoders that the benchmarks of engines use: their tasks, and how a stage or an engine takes a step."""

import time
from pathlib import Path

from torch import Tensor

from calib.task import Batch
from calib.tasks.decoding import Step, grown
from deploy.backends.onnxruntime.engine import load_engine
from deploy.run.workspace import Workspace
from deploy.stages.stage_runners import Runner, engine_runner

MODELS = {
    "stories260k": ("examples.decoding:task", "decoding"),
    "shakespeare": ("examples.shakespeare:decoding", "decoding_shakespeare"),
}
"""The task and the name of the record."""


def stepped(compute: Runner) -> Step:
    """Return a stage as a function of tokens and a cache."""
    return lambda *inputs: compute(Batch(inputs, None))


def step_of(workspace: Workspace, engine: Path) -> Step:
    """Return an engine on one thread."""
    return stepped(engine_runner(workspace.traced, load_engine(engine, threads=1).opened()))


def speeds(engines: dict[str, Step], prompt: Tensor, count: int, rounds: int, empty: tuple[Tensor, ...]) -> dict:
    """Return the tokens that each engine writes in a second of this process, the best of some rounds in turn."""
    best = dict.fromkeys(engines, 0.0)
    for _ in range(rounds):
        for name, step in engines.items():
            cache, tokens = empty, prompt
            start = time.process_time()
            for _ in range(count):
                logits, *made = step(tokens, *cache)
                cache = grown(cache, made)
                tokens = logits[:, -1:].argmax(-1)
            best[name] = max(best[name], count / (time.process_time() - start))
    return {name: round(value, 1) for name, value in best.items()}
