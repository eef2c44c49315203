"""Decoders with their cache as inputs and outputs: one network reads the prompt and writes token by token.

The prompt is read with many tokens and an empty cache (prefill), each further token with one token and a cache that has
grown (decode). Both sizes are free axes of one engine over the same weights. What is timed is the usual size of
`--shape`, or the largest calibration sample, which here is one token behind a full cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.task import Batch
from calib.tasks.language import Documents, LanguageTask

Step = Callable[..., tuple[Tensor, ...]]
"""Maps new tokens `[n, t]` and the tensors of a cache to the logits `[n, t, vocabulary]` and what the cache gains."""
_ROWS = 8
"""Calibration rows of each size."""


class EmptyCache(Protocol):
    """Returns the cache of no token."""

    def __call__(self, rows: int) -> tuple[Tensor, ...]:
        """Return tensors `[rows, ..., 1, size]`: the first place is there so that none has length 0,
        and is not seen.
        """
        ...


class DecodingTask(LanguageTask):
    """`LanguageTask` of a network with a cache: `network(tokens, *cache)` is a `Step`.

    1. Tensors of a cache are `[n, ..., 1 + p, size]` for `p` earlier tokens; what the network returns behind the logits
       is `[n, ..., t, size]` of the new ones, in the same order.
    2. Calibration batches have several sizes: `lengths` are places of the cache and new tokens, by default a prompt, a
       half and a full cache with one token, and a few tokens in the middle.
    3. Rows of the evaluation and of `selection` are whole, with an empty cache, which `empty_cache` makes.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[], nn.Module],
        calibration: Callable[[], Documents],
        evaluation: Callable[[], Documents],
        context: int,
        empty_cache: EmptyCache,
        *,
        batch: int = 4,
        perplexity: bool = False,
        selection: Callable[[], Documents] | None = None,
    ) -> None:
        self.lengths = lengths_of(context)
        super().__init__(
            name, network, calibration, evaluation, context,
            rows=_ROWS * len(self.lengths), batch=batch, perplexity=perplexity, selection=selection,
        )  # fmt: skip
        self.empty_cache = empty_cache
        if selection is not None:
            rows = self.selection
            self.selection = lambda: self._from_empty(rows())

    def calibration(self) -> list[Batch]:
        """Return a batch of each size: the tokens before are in its cache, as float computes it."""
        model, whole = self.model(), super().calibration()
        tokens, behind = torch.cat([batch.inputs[0] for batch in whole]), torch.cat([batch.target for batch in whole])
        found = []
        for number, (places, new) in enumerate(self.lengths):
            part, past = slice(number * _ROWS, (number + 1) * _ROWS), places - 1
            cache = self.empty_cache(_ROWS)
            if past:
                with torch.no_grad():
                    _, *made = model(tokens[part, :past], *cache)
                _check_gained(cache, made, past)
                cache = grown(cache, made)
            target = torch.cat([behind[part, :1], behind[part, 1 + past : 1 + past + new]], 1)
            found.append(Batch((tokens[part, past : past + new].contiguous(), *cache), target))
        return found

    def evaluation(self) -> list[Batch]:
        """Return whole rows, with an empty cache."""
        return self._from_empty(super().evaluation())

    def _from_empty(self, whole: Sequence[Batch]) -> list[Batch]:
        return [Batch((batch.inputs[0], *self.empty_cache(len(batch.inputs[0]))), batch.target) for batch in whole]


def lengths_of(context: int) -> tuple[tuple[int, int], ...]:
    """Return places of the cache and new tokens of calibration batches: one token, a prompt, some tokens, one token.

    The last one is the largest, which is timed: one token behind a full cache.
    """
    least = 64
    if context < least:
        raise UserError(
            f"a context of {context} tokens is too short to calibrate on several sizes: it has {least} or more"
        )
    return ((context // 2, 1), (1, context), (context // 8, 8), (context, 1))


def grown(cache: Sequence[Tensor], made: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the cache with what a step added."""
    return tuple(torch.cat(pair, -2) for pair in zip(cache, made, strict=True))


def _check_gained(cache: Sequence[Tensor], made: Sequence[Tensor], count: int) -> None:
    """Raise UserError unless a step gave what `count` new tokens add to each tensor of the cache."""
    wanted, found = ([tuple(each.shape) for each in tensors] for tensors in (cache, made))
    wanted = [(*shape[:-2], count, shape[-1]) for shape in wanted]
    if found != wanted:
        raise UserError(
            f"the network returned {found} behind the logits of {count} tokens, and not {wanted}: for each tensor of "
            "the cache what the new tokens add, without what it was given"
        )


def generate(step: Step, prompt: Tensor, count: int, cache: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Yield the logits `[n, vocabulary]` of `count` tokens behind a prompt `[n, t]`, each the most probable one."""
    tokens = prompt
    for _ in range(count):
        logits, *made = step(tokens, *cache)
        cache = grown(cache, made)
        yield logits[:, -1]
        tokens = logits[:, -1:].argmax(-1)
