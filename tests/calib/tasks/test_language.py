import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from calib.data import check_batches
from calib.errors import UserError
from calib.task import SetTask
from calib.tasks.language import NO_TOKEN, LanguageTask, logits_of, read_tokens
from smpq.value.value import measure_of

VOCABULARY, CONTEXT = 12, 8


def task_of(evaluation, calibration=((1, 2, 3),) * 30, **more):
    network = partial(nn.Embedding, VOCABULARY, VOCABULARY)
    return LanguageTask("tiny", network, lambda: calibration, lambda: evaluation, CONTEXT, rows=3, batch=2, **more)


def test_each_token_but_the_first_of_a_document_is_predicted_once():
    documents = [[*range(11)], [7, 8], [5]]
    task = task_of(documents)
    assert isinstance(task, SetTask)
    batches = task.evaluation()
    check_batches(batches)
    pairs = [
        (int(row[0]), int(given), int(behind))
        for batch in batches
        for tokens, row in zip(batch.inputs[0], batch.target, strict=True)
        for given, behind in zip(tokens, row[1:], strict=True)
        if behind != NO_TOKEN
    ]
    assert pairs == [*((0, one, one + 1) for one in range(10)), (1, 7, 8)]
    assert [name for batch in batches for name in task.groups(batch.target)] == [0, 0, 1]


def test_calibration_rows_follow_each_other_without_padding():
    task = task_of([[1, 2]])
    batches = task.calibration()
    check_batches(batches)
    tokens = torch.cat([batch.inputs[0] for batch in batches])
    behind = torch.cat([batch.target[:, 1:] for batch in batches])
    assert tokens.shape == (3, CONTEXT)
    assert tokens.flatten().tolist() == [1 + place % 3 for place in range(24)]
    assert behind.flatten().tolist() == [1 + (place + 1) % 3 for place in range(24)]


def test_calibration_rows_are_of_the_document_that_they_begin_in():
    task = task_of([[1, 2]], [[1] * 7, [2] * 3, [3] * 20])
    assert [name for batch in task.calibration() for name in task.groups(batch.target)] == [0, 1, 2]


def test_selection_documents_are_cut_as_those_of_the_evaluation():
    documents = [[*range(11)], [7, 8], [5]]
    task = task_of([[1, 2]], selection=lambda: documents)
    for one, other in zip(task.selection(), task_of(documents).evaluation(), strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0])
        assert torch.equal(one.target, other.target)
    assert not hasattr(task_of(documents), "selection")
    with pytest.raises(UserError, match="the selection text of tiny has no document"):
        task_of(documents, selection=list).selection()


@pytest.mark.parametrize("length", [24, 25])
def test_calibration_needs_a_token_behind_the_last_row(length):
    task = task_of([[1, 2]], [[1] * length])
    if length > 3 * CONTEXT:
        assert sum(len(batch.inputs[0]) for batch in task.calibration()) == 3
    else:
        with pytest.raises(UserError, match="need 25, and it has 24"):
            task.calibration()


def test_a_text_without_anything_to_predict_is_refused():
    with pytest.raises(UserError, match="two tokens"):
        task_of([[4], []]).evaluation()


def outputs():
    target = torch.full((2, 1 + CONTEXT), NO_TOKEN)
    target[0, :7], target[1, :3] = 5, 7
    output = torch.zeros(2, CONTEXT, VOCABULARY)
    output[1, :, 7] = 100.0  # certain, and right
    return output, target


def test_the_figure_is_the_mean_over_tokens():
    output, target = outputs()
    task = task_of([[1, 2]])
    records = task.records(output, target)
    assert [tokens for _, tokens in records] == [6, 2]
    assert task.metric_of(records) == pytest.approx(-6 * math.log(VOCABULARY) / 8)
    assert task.loss(output, target).tolist() == pytest.approx([math.log(VOCABULARY), 0], abs=1e-6)


def test_logits_in_half_precision_are_summed_in_single():
    torch.manual_seed(0)
    output, task = torch.randn(2, CONTEXT, VOCABULARY).half(), task_of([[1, 2]])
    _, target = outputs()
    for found, expected in zip(task.records(output, target), task.records(output.double(), target), strict=True):
        assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    apart = task.divergence(output, output.roll(1, 0)).double()
    torch.testing.assert_close(apart, task.divergence(output.double(), output.roll(1, 0).double()), rtol=1e-5, atol=0)


def test_the_figure_may_be_the_perplexity():
    task = task_of([[1, 2]], perplexity=True)
    records = task.records(*outputs())
    assert task.metric_name == "minus perplexity"
    assert task.metric_of(records) == pytest.approx(-(VOCABULARY ** (6 / 8)))
    assert math.isnan(task.metric_of([(1e6, 1)]))


def test_the_divergence_is_that_of_the_logits_alone():
    task = task_of([[1, 2]])
    output, _ = outputs()
    apart = torch.rand(2, 3)
    assert task.divergence((output, apart), (output, apart + 1)).tolist() == [0, 0]
    moved = task.divergence((output * 0.01, apart), (output, apart))
    assert moved[0] == 0
    assert moved[1] > 0.1


def test_logits_are_found_in_what_a_decoder_returns():
    logits = torch.rand(2, 3, 4)
    for output in (logits, (logits, None), {"logits": logits}, SimpleNamespace(logits=logits)):
        assert logits_of(output) is logits
    for wrong in (logits[0], (), {"scores": logits}, None):
        with pytest.raises(UserError, match="no logits"):
            logits_of(wrong)


def test_tokens_are_read_as_one_document_or_several(tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, np.array([3, 4, 0, 0, 5, 0], np.uint16))
    assert read_tokens(path) == [[3, 4, 0, 0, 5, 0]]
    assert read_tokens(path, separator=0) == [[3, 4], [5]]


@pytest.mark.parametrize("array", [np.zeros((2, 2), int), np.zeros(3), np.array([1, -1]), np.array([{}], object)])
def test_other_files_are_refused(tmp_path, array):
    path = tmp_path / "tokens.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=r"tokens\.npy"):
        read_tokens(path)


def test_missing_damaged_and_other_archives_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_tokens(tmp_path / "tokens.npy")
    (tmp_path / "tokens.npy").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        read_tokens(tmp_path / "tokens.npy")
    np.savez(tmp_path / "tokens.npz", a=np.arange(3))
    with pytest.raises(UserError, match="one dimension"):
        read_tokens(tmp_path / "tokens.npz")


def test_padding_counts_for_no_divergence():
    task = task_of([[1, 2]], selection=lambda: [[1, 2, 3], [4, 5]])
    (batch,) = task.selection()
    torch.manual_seed(0)
    ours, known = torch.randn(2, 2, CONTEXT, VOCABULARY).unbind()
    per_token = task.divergence(ours[:, :1], known[:, :1]), task.divergence(ours[:, 1:2], known[:, 1:2])
    expected = torch.stack([(per_token[0][0] + per_token[1][0]) / 2, per_token[0][1]])
    torch.testing.assert_close(-measure_of(task, "kl")(ours, known, batch).float(), expected)
