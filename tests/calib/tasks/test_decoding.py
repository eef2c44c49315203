import pytest
import torch
from torch import nn

from calib.data import check_batches
from calib.errors import UserError
from calib.tasks.decoding import DecodingTask, generate, grown, lengths_of
from calib.tasks.language import LanguageTask

VOCABULARY, CONTEXT = 16, 64


class Summing(nn.Module):
    """The logits of a token say how often each token was before it: the cache holds one number for each."""

    def forward(self, tokens, cache):
        new = nn.functional.one_hot(tokens, VOCABULARY).float()
        total = cache[:, 1:].sum(1, keepdim=True) + new.cumsum(1)  # the first place is not seen
        return total, new


def empty_cache(rows):
    return (torch.full((rows, 1, VOCABULARY), 9.0),)


def text():
    torch.manual_seed(0)
    return [torch.randint(VOCABULARY, (CONTEXT * 40,)).tolist()]


@pytest.fixture
def task():
    return DecodingTask("counts", Summing, text, lambda: [row[:100] for row in text()], CONTEXT, empty_cache)


def test_batches_are_the_middle_of_a_text_with_what_was_before(task):
    batches = task.calibration()
    check_batches(batches)
    sizes = [(batch.inputs[1].shape[1], batch.inputs[0].shape[1]) for batch in batches]
    assert sizes == [(32, 1), (1, CONTEXT), (8, 8), (CONTEXT, 1)]
    plain = LanguageTask("plain", Summing, text, text, CONTEXT, rows=32)
    rows = torch.cat([batch.inputs[0] for batch in plain.calibration()])
    for number, (batch, (places, new)) in enumerate(zip(batches, sizes, strict=True)):
        part, end = rows[8 * number : 8 * number + 8], places - 1 + new
        whole, _ = Summing()(part[:, :end], *empty_cache(8))
        found, _ = task.model()(*batch.inputs)
        assert torch.equal(found, whole[:, -new:]), "as if the whole text had been read"
        if end < CONTEXT:
            assert torch.equal(batch.target[:, -1], part[:, end])
        assert batch.target.shape == (8, 1 + new)


class Whole(Summing):
    """Returns the cache with what it was given, as many decoders do."""

    def forward(self, tokens, cache):
        total, new = super().forward(tokens, cache)
        return total, torch.cat([cache, new], 1)


class Twice(Summing):
    def forward(self, tokens, cache):
        total, new = super().forward(tokens, cache)
        return total, new, new


@pytest.mark.parametrize("network", [Whole, Twice])
def test_a_network_that_returns_something_else_than_new_places_is_refused(network):
    task = DecodingTask("wrong", network, text, text, CONTEXT, empty_cache)
    with pytest.raises(UserError, match="what the new tokens add, without what it was given"):
        task.calibration()


def test_whole_rows_are_evaluated_with_an_empty_cache(task):
    first = task.evaluation()[0]
    assert first.inputs[0].shape == (2, CONTEXT)
    assert torch.equal(first.inputs[1], empty_cache(2)[0])
    assert len(task.records(task.model()(*first.inputs), first.target)) == 2


def test_selection_rows_have_an_empty_cache_as_those_of_the_evaluation(task):
    documents = [row[100:280] for row in text()]
    chosen = DecodingTask("chosen", Summing, text, text, CONTEXT, empty_cache, selection=lambda: documents)
    judged = DecodingTask("judged", Summing, text, lambda: documents, CONTEXT, empty_cache)
    for one, other in zip(chosen.selection(), judged.evaluation(), strict=True):
        assert len(one.inputs) == 2
        assert all(map(torch.equal, one.inputs, other.inputs))
        assert torch.equal(one.target, other.target)
    assert not hasattr(task, "selection")


def test_written_tokens_are_the_most_probable_ones():
    prompt = torch.tensor([[3, 5, 5], [7, 7, 1]])
    logits = list(generate(Summing(), prompt, 4, empty_cache(2)))
    assert [each.argmax(-1).tolist() for each in logits] == [[5, 7]] * 4
    assert logits[-1][0, 5] == 2 + 3


def test_a_cache_grows_in_the_axis_before_the_last():
    cache = grown((torch.zeros(2, 3, 1, 4), torch.zeros(2, 1, 4)), (torch.ones(2, 3, 5, 4), torch.ones(2, 5, 4)))
    assert [tuple(each.shape) for each in cache] == [(2, 3, 6, 4), (2, 6, 4)]


def test_a_context_is_long_enough_for_several_sizes():
    assert lengths_of(512) == ((256, 1), (1, 512), (64, 8), (512, 1))
    with pytest.raises(UserError, match="too short"):
        lengths_of(63)
