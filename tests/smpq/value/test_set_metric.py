"""A metric of all samples together: the figure is the user's own, and the intervals hold their level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from calib.errors import UserError
from calib.task import Batch
from smpq.files import Interval
from smpq.value.collected import MeanCollected
from smpq.value.loss import loss_of
from smpq.value.metric import collected
from smpq.value.resampling import RESAMPLES, UndefinedError, figure_of
from smpq.value.set_metric import SetCollected
from tests.smpq.ranking import auc


class Task:
    """What a metric of the whole set asks of a task. Outputs are scores, targets whatever `records` wants."""

    name, metric_name = "own", "AUC"
    calls = 0

    def model(self): ...
    def calibration(self): ...
    def evaluation(self): ...
    def loss(self, output, target): ...

    def records(self, output, target):
        return list(zip(target.tolist(), output.tolist(), strict=True))

    def metric_of(self, records):
        self.calls += 1
        return auc(records)


class MeanTask(Task):
    def records(self, output, target):
        return output.tolist()

    def metric_of(self, records):
        return sum(records) / len(records)


class Corpus(Task):
    """Perplexity: targets are documents and tokens, outputs nats."""

    def records(self, output, target):
        return list(zip(output.tolist(), target[:, 1].tolist(), strict=True))

    def metric_of(self, records):
        assert records, "never asked about nothing"
        nats, tokens = zip(*records, strict=True)
        return -math.exp(sum(nats) / sum(tokens))


class Documents(Corpus):
    def groups(self, target):
        return target[:, 0]


def given(task, outputs, targets, sizes=None):
    found, start = collected(task), 0
    for number, size in enumerate(sizes or [len(outputs)]):
        batch = Batch((outputs[start : start + size],), targets[start : start + size])
        found.take(number, batch.inputs[0], batch)
        start += size
    return found


def drawn(generator, count, rare=0.5, noise=0.3):
    labels = generator.random(count) < rare
    scores = generator.normal(size=count) + labels
    return (torch.tensor(scores), torch.tensor(scores + noise * generator.normal(size=count)), torch.tensor(labels))


def test_the_figure_is_what_the_users_own_callable_says_of_all_data():
    scores, _, labels = drawn(np.random.default_rng(1), 90)
    found = given(Task(), scores, labels, [40, 3, 47])
    assert found.samples == 90
    assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.figure().value == found.value
    assert found.value in found.figure().interval
    assert found.doubt() is None


def test_the_intervals_hold_their_level():
    generator, hits, found = np.random.default_rng(0), np.zeros(3), []
    true, after = (0.5 * (1 + math.erf(0.5 / math.sqrt(1 + extra))) for extra in (0.0, 0.09))
    for _ in range(16):
        scores, noisy, labels = drawn(generator, 40)
        first, second = given(Task(), scores, labels), given(Task(), noisy, labels)
        figure, change = first.figure(), first.change_to(second)
        low, high = first.loss_to(second, 0.01, 0.0).interval
        hits += true in figure.interval, after - true in change.interval, low <= 100 * (true - after) <= high
        found.append((figure.value, change.value, figure.standard_error, change.standard_error))
    assert (hits >= 14).all(), hits
    values, errors = np.split(np.array(found), 2, 1)
    assert (errors.mean(0) / values.std(0) > 0.7).all()
    assert (errors.mean(0) / values.std(0) < 1.5).all(), "and are no wider than that takes"


def test_what_both_find_hard_cancels_in_a_change():
    scores, noisy, labels = drawn(np.random.default_rng(2), 200)
    first, second = given(Task(), scores, labels), given(Task(), noisy, labels)
    change = first.change_to(second)
    assert change.value == second.value - first.value
    assert change.standard_error < 0.6 * math.hypot(first.figure().standard_error, second.figure().standard_error)
    assert first.change_to(first).standard_error == 0.0


def test_a_change_is_over_the_batches_of_both():
    scores, noisy, labels = drawn(np.random.default_rng(3), 60)
    all_of_it = given(Task(), scores, labels, [20, 20, 20])
    part = given(Task(), noisy[:40], labels[:40], [20, 20])
    expected = auc(list(zip(labels[:40], noisy[:40], strict=True))) - auc(
        list(zip(labels[:40], scores[:40], strict=True))
    )
    assert all_of_it.change_to(part).value == pytest.approx(expected)


def test_samples_of_a_group_are_drawn_together():
    generator = np.random.default_rng(4)
    documents = torch.arange(30).repeat_interleave(10)
    level = 1 + generator.random(30)
    nats = torch.tensor(level).repeat_interleave(10) * 50
    targets = torch.stack([documents, torch.full((300,), 50)], 1)
    alone, together = given(Corpus(), nats, targets), given(Documents(), nats, targets, [100, 200])
    assert alone.value == together.value == pytest.approx(-math.exp(level.mean()))
    errors = together.figure().standard_error, alone.figure().standard_error
    delta = math.exp(level.mean()) * level.std(ddof=1) / math.sqrt(30)
    assert errors[0] == pytest.approx(delta, rel=0.25)
    assert errors[1] == pytest.approx(delta / math.sqrt(10), rel=0.25), "as if the sentences knew nothing of each other"


def test_resamples_of_one_class_are_drawn_anew():
    class Strict(Task):
        def metric_of(self, records):
            if len({label for label, _ in records}) == 1:
                raise ValueError("only one class")
            return super().metric_of(records)

    labels = torch.tensor([True] * 2 + [False] * 18)
    scores, task = torch.arange(20.0).flip(0), Strict()
    found = given(task, scores, labels)
    assert found.figure().value == 1.0
    assert task.calls == RESAMPLES + 1, "two of 18 are missing in every eighth resample"
    assert given(Task(), scores, labels).figure() == found.figure(), "NaN says the same"
    with pytest.raises(UndefinedError, match="only one class"):
        _ = given(Strict(), scores[:2], labels[:2]).value


def test_a_metric_of_scikit_learn_serves():
    def area(records):
        return roc_auc_score(*zip(*records, strict=True))

    assert figure_of(area, [(0, 0.1), (1, 0.7), (0, 0.9)]) == 0.5
    with pytest.raises(UndefinedError):  # it warns and gives NaN, or raises ValueError, by its version
        figure_of(area, [(0, 0.1), (0, 0.7)])


def test_a_figure_that_most_resamples_do_not_have_has_no_interval():
    class Whole(Task):
        def metric_of(self, records):
            return 1.0 if len(set(records)) == 20 else math.nan

    found = given(Whole(), torch.arange(20.0), torch.zeros(20))
    assert found.value == 1.0
    with pytest.raises(
        UndefinedError, match=r"undefined on most resamples of 20 .*gave nan for 20 records\): give more"
    ):
        found.figure()


@pytest.mark.parametrize(("lost", "gained"), [(6, 2), (1, 0), (0, 0)])
def test_of_a_mean_the_loss_is_about_that_of_bonett_and_price(lost, gained):
    before = torch.ones(300)
    before[::5] = 0.0
    after = before.clone()
    after[1 : 1 + 10 * lost : 10], after[0 : 10 * gained : 10] = 0.0, 1.0
    usual = loss_of(100 * (before - after), largest=100.0)
    found = given(MeanTask(), before, before).loss_to(given(MeanTask(), after, after), 0.01, 0.0)
    assert found.mean == pytest.approx(usual.mean)
    assert found.samples == 300
    assert 0.8 <= found.standard_error / usual.standard_error <= 1.6
    known = given(MeanTask(), before, before).loss_to(given(MeanTask(), after, after), 0.01, 100.0)
    assert known.standard_error >= 0.9 * usual.standard_error


def test_where_nothing_varies_a_sample_may_still():
    same = torch.zeros(50)
    lost = given(MeanTask(), same, same).loss_to(given(MeanTask(), same, same), 1.0, 0.0)
    assert lost.standard_error == pytest.approx(math.sqrt(2) / 50)
    right = torch.ones(50)
    rounded = given(MeanTask(), right.double() + 1e-15, right)
    lost = given(MeanTask(), right, right).loss_to(rounded, 1.0, 0.0)
    assert lost.standard_error == pytest.approx(math.sqrt(2) / 50), "rounding is no difference"


def test_few_groups_are_told_and_their_intervals_are_wide():
    def of(documents):
        nats = torch.linspace(20, 30, documents)
        return given(Documents(), nats, torch.stack([torch.arange(documents), torch.full((documents,), 20)], 1))

    assert of(10).doubt() is None
    assert of(9).doubt() == "the interval of AUC cannot be told from 9 groups: give data with 10 or more"
    values = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
    student = 2.776 / 1.96 * float(values.std()) / math.sqrt(5)
    assert given(MeanTask(), values, values).figure().standard_error == pytest.approx(student, rel=0.12)
    one = of(1)
    assert one.figure().standard_error == abs(one.value)
    assert one.change_to(one).standard_error == abs(one.value)
    assert one.loss_to(one, 1.0, 0.0).standard_error > abs(one.value)


def test_calls_are_counted_not_timed():
    scores, noisy, labels = drawn(np.random.default_rng(5), 110)
    first, second = Task(), Task()
    before, after = given(first, scores, labels), given(second, noisy, labels)
    before.figure(), before.change_to(after), after.figure()
    assert first.calls <= RESAMPLES + 3
    assert second.calls <= RESAMPLES + 3
    before.loss_to(after, 1.0, 0.0)
    assert second.calls <= RESAMPLES + 100 + 5
    again = given(Task(), scores, labels).loss_to(given(Task(), noisy, labels), 1.0, 0.0)
    assert again == before.loss_to(after, 1.0, 0.0), "the same each time"


@pytest.mark.parametrize(
    ("part", "given_back", "message"),
    [
        ("records", [1, 2], r"records\(\) must return one object per sample, 12, not 2"),
        ("records", {"boxes": 1}, r"records\(\) must return one object per sample, 12, not dict"),
        ("records", None, r"records\(\) failed: TypeError"),
        ("groups", ["a"], r"groups\(\) must return one object per sample, 12, not 1"),
        ("groups", [["a"]] * 12, r"groups\(\) must return numbers or strings, not list"),
        ("groups", torch.zeros(12, 2), r"groups\(\) must return numbers or strings, not Tensor"),
        ("metric_of", None, r"metric_of\(\) failed: TypeError"),
        ("metric_of", math.inf, r"metric_of\(\) gave inf for 12 records"),
    ],
)
def test_what_is_wrong_is_one_message(part, given_back, message):
    task = Task()
    setattr(task, part, lambda *_: given_back)
    with pytest.raises(UserError, match=message):
        _ = given(task, torch.zeros(12), torch.zeros(12)).value


def test_means_of_samples_are_what_they_were():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.rand(2, 50, generator=generator, dtype=torch.float64)
    one, two = MeanCollected(lambda output, _: output), MeanCollected(lambda output, _: output)
    for number, start in reversed([*enumerate(range(0, 50, 10))]):  # the order of their numbers counts
        for found, values in ((one, before), (two, after)):
            found.add(number, values[start : start + 10])
    assert isinstance(given(Task(), before, before > 0.5), SetCollected)
    assert one.value == float(before.mean())
    error = float(before.std()) / math.sqrt(50)
    assert one.figure().interval == Interval(float(before.mean()) - 1.96 * error, float(before.mean()) + 1.96 * error)
    change = after - before
    assert one.change_to(two).value == float(change.mean())
    assert one.change_to(two).standard_error == float(change.std()) / math.sqrt(50)
    assert one.loss_to(two, 0.5, 2.0) == loss_of((before - after) / 0.5, 2.0)
    assert one.early


def test_an_interval_ends_where_a_share_does():
    scores, labels = torch.arange(60.0), torch.arange(60) >= 57
    scores[0], labels[40] = 58.5, True
    found = given(Task(), scores, labels)
    assert found.figure().interval.high == 1.0
    assert found.figure().value + 1.96 * found.figure().standard_error > 1


def test_what_is_rare_makes_the_interval_a_guess():
    scores = torch.arange(40.0)
    rare = given(Task(), scores, torch.arange(40) >= 38)
    assert "what it needs is rare among them" in rare.doubt()
    assert given(Task(), scores, torch.arange(40) >= 20).doubt() is None
