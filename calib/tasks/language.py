"""Language models: any causal decoder and documents of tokens, judged by nats per token or by perplexity.

A task of your own is a function that returns a `LanguageTask` (`examples/shakespeare.py` is one):

    def task(data, weights):
        texts = [partial(read_tokens, data / f"{part}.npy", separator=0) for part in ("calibration", "evaluation")]
        return LanguageTask("my-decoder", lambda: restored(weights), *texts, context=512)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.task import Batch

NO_TOKEN = -100
"""What stands in a target behind the last token of a row; `cross_entropy` ignores it."""
Documents = Iterable[Sequence[int]]
"""The tokens of each document."""
_LOGITS_DIM = 3


class Counted(NamedTuple):
    """A record: nats of a row, and how many tokens they are of."""

    nats: float
    tokens: int


class LanguageTask:
    """A causal decoder, what calibrates it and what judges it.

    1. `network()` returns the module in eval mode. It maps tokens `[n, t]` to the logits `[n, t, vocabulary]` of the
       token behind each: a tensor, or the first of a tuple, or what is called `logits` of the output.
    2. Calibration rows are cut from the documents, one behind the other, without padding, which would count as text.
    3. Evaluation rows hold at most `context` tokens of one document; a longer document has several. Each token but the
       first of a document is predicted once, from what is before it in its row and, of a further row, from the last
       token of the row before.
    4. The figure is that of all tokens together, as the rows differ in length. Its interval is that of a bootstrap over
       documents: rows of one document are drawn together.
    5. A target is `[n, 1 + context]`: the number of the document that the row begins in, and the token behind each.
    6. A budget on the loss is decided on rows of the `selection` documents, cut as those of the evaluation; without
       them on the calibration rows.
    """

    metric_name = "minus nats per token"
    metric_point = 0.01  # a budget drop=0.5 is then 0.005 nats
    selection: Callable[[], list[Batch]]
    """Held-out rows that decide about a budget on the loss; missing where there are no documents for them."""

    def __init__(
        self,
        name: str,
        network: Callable[[], nn.Module],
        calibration: Callable[[], Documents],
        evaluation: Callable[[], Documents],
        context: int,
        *,
        rows: int = 32,
        batch: int = 4,
        perplexity: bool = False,
        selection: Callable[[], Documents] | None = None,
    ) -> None:
        """Take functions that read the documents: they are called when they are needed.

        `rows` of the calibration documents are used, in batches of `batch`. `perplexity`: the figure is minus the
        exponential of the nats per token, and a point of it is 0.1.
        """
        self.name, self.context, self.rows, self.batch = name, context, rows, batch
        self._network, self._calibration, self._evaluation = network, calibration, evaluation
        self._perplexity = perplexity
        if selection is not None:
            self.selection = lambda: self._rows(selection(), "selection")
        if perplexity:
            self.metric_name, self.metric_point = "minus perplexity", 0.1

    def model(self) -> nn.Module:
        """Return the trained network."""
        return self._network()

    def calibration(self) -> list[Batch]:
        """Return the first rows of the calibration documents; UserError when they are too short."""
        wanted, text, begins = self.rows * self.context + 1, list[int](), list[int]()
        for document in self._calibration():
            begins.append(len(text))
            text += document
            if len(text) >= wanted:
                break
        else:
            raise UserError(
                f"the calibration text of {self.name} is too short: {self.rows} rows of {self.context} tokens need "
                f"{wanted}, and it has {len(text)}"
            )
        starts = range(0, self.rows * self.context, self.context)
        return self._batches([(bisect_right(begins, at) - 1, text[at : at + self.context + 1]) for at in starts])

    def evaluation(self) -> list[Batch]:
        """Return the rows of the evaluation documents; UserError when there is nothing to predict."""
        return self._rows(self._evaluation(), "evaluation")

    def _rows(self, documents: Documents, what: str) -> list[Batch]:
        rows = [
            (number, document[start : start + self.context + 1])
            for number, document in enumerate(documents)
            for start in range(0, len(document) - 1, self.context)
        ]
        if not rows:
            raise UserError(f"the {what} text of {self.name} has no document of two tokens or more")
        return self._batches(rows)

    def records(self, output: Any, target: Tensor) -> list[Counted]:
        """Return nats and tokens of each row."""
        nats, tokens = self._nats(output, target)
        return [Counted(*each) for each in zip(nats.tolist(), tokens.tolist(), strict=True)]

    def metric_of(self, records: Sequence[Counted]) -> float:
        """Return the nats per token of all rows, or the perplexity, with a minus: higher is better."""
        nats = sum(nats for nats, _ in records) / sum(tokens for _, tokens in records)
        if not self._perplexity:
            return -nats
        try:
            return -math.exp(nats)
        except OverflowError:  # beyond 709 nats: NaN says undefined
            return math.nan

    def groups(self, target: Tensor) -> list[int]:
        """Return the number of each row's document."""
        return [int(number) for number in target[:, 0]]

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the nats per token `[n]` of each row."""
        nats, tokens = self._nats(output, target)
        return nats / tokens

    def divergence(self, output: Any, float_output: Any, target: Tensor | None = None) -> Tensor:
        """Return `[n]`, the divergence of the next tokens' distributions, the mean over the tokens of the row; without
        the target all places of the row count.
        """
        ours, reference = (functional.log_softmax(logits_of(each), -1) for each in (output, float_output))
        apart = (reference.exp() * (reference - ours)).sum(-1)
        if target is None:
            return apart.mean(1)
        text = target[:, 1:] != NO_TOKEN
        return (apart * text).sum(1) / text.sum(1)

    def _nats(self, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        behind = target[:, 1:]
        nats = functional.cross_entropy(
            logits_of(output).transpose(1, 2), behind, reduction="none", ignore_index=NO_TOKEN
        )
        return nats.sum(1), (behind != NO_TOKEN).sum(1)

    def _batches(self, rows: Sequence[tuple[int, Sequence[int]]]) -> list[Batch]:
        """Return rows, and as targets the same one token further; what is behind a token changes nothing for it."""
        inputs = torch.zeros(len(rows), self.context, dtype=torch.int64)
        targets = torch.full((len(rows), 1 + self.context), NO_TOKEN)
        for index, (number, row) in enumerate(rows):
            inputs[index, : len(row) - 1] = torch.tensor(list(row[:-1]))
            targets[index, 0] = number
            targets[index, 1 : len(row)] = torch.tensor(list(row[1:]))
        return [Batch((x,), y) for x, y in zip(inputs.split(self.batch), targets.split(self.batch), strict=True)]


def logits_of(output: Any) -> Tensor:
    """Return the logits `[n, t, vocabulary]` of what a decoder returned; UserError when there are none.

    Half precision becomes single: nats of a row are sums over its tokens.
    """
    if isinstance(output, dict):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != _LOGITS_DIM:
        raise UserError(
            "the decoder returned no logits [samples, tokens, vocabulary]: return them alone, first of a tuple, or as "
            "`logits`"
        )
    return output.to(torch.promote_types(output.dtype, torch.float32))


def read_tokens(path: Path, separator: int | None = None) -> list[list[int]]:
    """Return the documents of a file of tokens: a `.npy` file with one dimension of integers.

    `separator` is the token behind each document, and is no part of it; without one the file is one document. UserError
    when the file is missing, or holds anything else.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the tokens of {path} ({error}): it is a file of numpy.save") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UserError(f"{path} does not hold one dimension of integers: save the tokens of the text as such")
    if len(tokens) and tokens.min() < 0:
        raise UserError(f"{path} holds a negative token: tokens are numbers from 0 on")
    if separator is None:
        return [tokens.tolist()]
    ends = np.flatnonzero(tokens == separator)
    parts = np.split(np.asarray(tokens), ends)
    documents = [parts[0].tolist(), *(part[1:].tolist() for part in parts[1:])]
    return [document for document in documents if document]
