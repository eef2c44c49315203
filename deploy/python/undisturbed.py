"""The state of the caller's process: what smpq computes depends on none of it, and leaves it as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def undisturbed(model: object) -> Iterator[None]:
    """Compute as outside of `torch.inference_mode`, `torch.no_grad` and `torch.autocast`.

    At the end, also after an exception, the random numbers of torch, NumPy and Python go on where they were, and the
    model and each of its parts are in the mode, training or not, that they were in.
    """
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [part.training for part in parts]
    drawn, drawn_by_numpy, drawn_by_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for part, mode in zip(parts, training, strict=True):
            if part.training != mode:  # a module of torch.jit writes no attribute
                part.training = mode
        torch.set_rng_state(drawn)
        np.random.set_state(drawn_by_numpy)  # noqa: NPY002
        random.setstate(drawn_by_python)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
