"""How sure a model is of each sample, by what it puts out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calib.data import per_sample
from calib.task import Batch, Task


def confidences(task: Task, output: Any, batch: Batch) -> Tensor | None:
    """Return `[n]`, how sure the model is of each sample; None where that cannot be said.

    The task's own `confidences(output)` says it. Else it is the highest probability, where the targets are class labels
    `[n]` and the output is `[n, classes]`. Rows that are no probabilities are taken for logits.
    """
    own, samples = getattr(task, "confidences", None), len(batch.inputs[0])
    if own is not None:
        return per_sample(own, (output,), samples, "confidences")
    if not _has_labels(batch.target, samples) or not scores_classes(output, samples):
        return None
    scores: Tensor = output.detach().double()
    probabilities = bool((scores >= 0).all()) and torch.allclose(scores.sum(1), scores.new_ones(samples), atol=1e-3)
    return (scores if probabilities else scores.softmax(1)).amax(1)


def _has_labels(target: Any, samples: int) -> bool:
    return isinstance(target, Tensor) and target.shape == (samples,) and not target.is_floating_point()


def scores_classes(output: Any, samples: int) -> bool:
    """Whether an output is `[n, classes]` with two classes or more, as far as its shape tells."""
    return (
        isinstance(output, Tensor)
        and output.dim() == 2
        and len(output) == samples
        and output.size(1) > 1
        and output.is_floating_point()
    )
