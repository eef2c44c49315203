import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.errors import UserError
from calib.formats.format import Format
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.task import Batch
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.training.finetune import Subject, TrainingProgress, finetune
from smpq.training.loop import one_cycle
from smpq.training.settings import FineTuneSettings
from tests.smpq.tunable import Task, batch_of, tunable

QUICK = FineTuneSettings(steps=24, learning_rate=0.01, step_learning_rate=0.001)


@pytest.fixture(scope="module")
def given():
    return tunable(rounding="nearest")


@pytest.fixture(scope="module")
def subject(given):
    return given.subject("w2a8", stem="w3a8", head="w4a4")


@pytest.fixture(scope="module")
def tuned(given, subject):
    reports = []
    result = finetune(subject, given.batches, QUICK, reports.append)
    assert [report.step for report in reports] == [20, 24]
    assert all(isinstance(report, TrainingProgress) and report.steps == 24 for report in reports)
    return result


def test_it_gets_better_on_data_it_was_not_trained_on(tuned):
    assert tuned.kept == "end"
    assert tuned.after.value > 0.5 * tuned.before.value  # minus the divergence: half of it is gone
    assert tuned.before.value < 0
    assert tuned.history[-1]["step"] == 24
    assert tuned.seconds > 0


def test_gradients_that_the_caller_has_switched_off_are_on_while_it_trains(given, subject, tuned):
    with torch.no_grad():
        again = finetune(subject, given.batches, QUICK)
    assert again.history == tuned.history


@pytest.mark.parametrize("rules", [QdqRules("affine"), QdqRules("affine", outputs=True, integer_bias=True)])
def test_the_search_sees_exactly_what_was_trained(rules):
    given = tunable(rules, rounding="nearest")
    subject = given.subject("w2a8", plain="fp32", head="w4a8")
    tuned = finetune(subject, given.batches, QUICK)
    fake = FakeQuantizer(tuned.traced(given.traced), given.units, tuned.calibration(given.fake.calibration), rules)
    plan = fake.plan(subject.plan.formats)
    assert {entry.tensor for entry in plan.tensors} == {entry.tensor for entry in subject.plan.tensors}
    edits, total = fake.edits(plan), 0.0
    for batch in given.batches:
        log_p = F.log_softmax(given.traced.run(batch.inputs), 1)
        log_q = F.log_softmax(fake.traced.run(batch.inputs, edits), 1)
        total -= float((log_p.exp() * (log_p - log_q)).sum(1).mean())
    assert total / len(given.batches) == pytest.approx(tuned.after.value, rel=0.02, abs=1e-4)
    for unit in given.units:
        weight = fake.traced.state[unit.weight]
        if unit.path in tuned.weights:
            quantized = tuned.weights[unit.path]
            low, high = -(2 ** (quantized.bits - 1)), 2 ** (quantized.bits - 1) - 1
            step = quantized.scale.reshape(-1, *[1] * (weight.dim() - 1))
            # the integers are the float weight of the file, rounded, but where it lies in the middle of two
            wrong = (weight / step).round().clamp(low, high) != quantized.values
            middle = ((weight / step) % 1 - 0.5).abs() < 1e-4
            assert not bool((wrong & ~middle).any()), unit.path


def test_the_same_seed_gives_the_same_and_another_one_another(given, subject, tuned):
    again = finetune(subject, given.batches, QUICK)
    assert again.history == tuned.history
    for name, tensor in tuned.parameters.items():
        assert torch.equal(tensor, again.parameters[name]), name
    other = finetune(subject, given.batches, FineTuneSettings(steps=24, learning_rate=0.01, seed=1))
    assert other.history != tuned.history


def test_bfloat16_trains_otherwise_and_keeps_and_judges_in_float32(given, subject, tuned):
    found = finetune(subject, given.batches, replace(QUICK, bfloat16=True))
    assert found.before == tuned.before
    assert found.history != tuned.history
    assert found.after.value > 0.5 * found.before.value
    assert {tensor.dtype for tensor in found.parameters.values()} == {torch.float32}


def test_epochs_may_be_parts_of_one(given, subject):
    quick = {"learning_rate": 0.001, "step_learning_rate": 0.0001}
    for epochs, steps in ((0.5, 3), (1.5, 9), (0.01, 1)):
        tuned = finetune(subject, given.batches, FineTuneSettings(epochs=epochs, **quick))
        assert tuned.history[-1]["step"] == steps


def test_learned_activations_have_other_steps_and_fixed_ones_do_not(given, subject):
    calibrated = {(entry.tensor, entry.quantizer.bits): entry.quantizer for entry in subject.plan.tensors}
    for learn, expected in ((True, {4, 8}), (None, {4}), (False, set())):
        tuned = finetune(
            subject, given.batches, FineTuneSettings(steps=12, learn_activations=learn, step_learning_rate=0.01)
        )
        moved = {
            bits for (tensor, bits), grid in tuned.quantizers.items() if grid.scale != calibrated[tensor, bits].scale
        }
        assert tuned.kept == "end"
        assert moved == expected
        assert all(grid.zero_point == calibrated[name].zero_point for name, grid in tuned.quantizers.items())


def test_what_does_not_help_is_kept_only_if_asked_for(given, subject):
    far_off = FineTuneSettings(steps=3, learning_rate=20.0)
    assert finetune(subject, given.batches, far_off).kept == "end"
    tuned = finetune(subject, given.batches, replace(far_off, keep="better"))
    assert tuned.kept == "start"
    assert tuned.after == tuned.before
    for path, weight in tuned.weights.items():
        assert torch.equal(weight.values, subject.plan.weights[path].values)
        torch.testing.assert_close(weight.scale, subject.plan.weights[path].scale)
    assert {entry.quantizer for entry in subject.plan.tensors} == set(tuned.quantizers.values())


@pytest.mark.parametrize("value", ["loss", "metric"])
def test_other_values_judge_as_well(given, subject, value):
    tuned = finetune(subject, given.batches, FineTuneSettings(steps=12, value=value, keep="better"))
    assert tuned.after.value >= tuned.before.value
    if value == "metric":
        assert tuned.after.value == tuned.after.metric


class Errors(Task):
    """A metric of all samples together: minus the share of errors, in whole counts."""

    def records(self, output, target):
        return (output.argmax(1) != target).tolist()

    def metric_of(self, records):
        return -sum(records) / len(records)


class OneClass(Errors):
    def metric_of(self, records):
        return math.nan


def test_a_metric_of_all_samples_judges_as_well(given, subject):
    settings = FineTuneSettings(steps=1, value="metric")
    tuned = finetune(replace(subject, task=Errors()), given.batches, settings)
    shares = [count / 64 for count in range(64)]
    assert tuned.after.value == tuned.after.metric
    assert min(abs(tuned.after.metric + share) for share in shares) < 1e-9, "errors of 64 samples"
    with pytest.raises(UserError, match=r"judged on the calibration batches: the task's metric_of\(\) gave nan"):
        finetune(replace(subject, task=OneClass()), given.batches, settings)


def test_a_loss_that_is_not_a_number_is_an_error(given, subject):
    with pytest.raises(UserError, match=r"diverged.* after \d+ steps.* smaller learning rate \(now 1000000000.0\)"):
        finetune(subject, given.batches, FineTuneSettings(steps=20, learning_rate=1e9))


class Single(Task):
    def training(self, epoch):
        yield batch_of(3, 1)


class Broken(Task):
    def training(self, epoch):
        yield batch_of(3)
        yield Batch((torch.full((4, 2, 8, 8), math.nan),), None)


class Untrained(Task):
    training = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Single(), "two samples or more"),
        (Broken(), "training batch 1 of epoch 0 holds|input 0 of training batch 1 of epoch 0 holds NaN"),
        (Untrained(), "task normed has no training data: give it a method training"),
    ],
)
def test_wrong_training_data(given, task, message):
    subject = given.subject("w2a8", task)
    with pytest.raises(UserError, match=message):
        finetune(subject, given.batches, FineTuneSettings(steps=3))


class Detached(Task):
    def loss(self, output, target):
        return super().loss(output.detach(), target)


class Averaged(Task):
    def loss(self, output, target):
        return super().loss(output, target).mean()


class Failing(Task):
    def loss(self, output, target):
        raise KeyError("labels")


class Untaught(Task):
    def divergence(self, output, float_output):
        return (output.detach() - float_output).square().mean(1)


class Unlike(Task):
    def divergence(self, output, float_output):
        raise ValueError("of another shape")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Detached(), r"loss\(\) has no gradient"),
        (Averaged(), r"one value per sample, \[32\], not \[\]"),
        (Failing(), r"loss\(\) failed: KeyError: 'labels'"),
        (Untaught(), r"divergence\(\) has no gradient"),
        (Unlike(), r"divergence\(\) failed: ValueError: of another shape"),
    ],
)
def test_wrong_losses(given, task, message):
    with pytest.raises(UserError, match=message):
        finetune(given.subject("w2a8", task), given.batches, FineTuneSettings(steps=3))


def test_one_cycle_rises_and_falls():
    values = [one_cycle(step / 100) for step in range(101)]
    assert values[0] == pytest.approx(1 / 25)
    assert values[30] == 1.0
    assert values == sorted(values[:31]) + sorted(values[31:], reverse=True)
    assert values[100] == pytest.approx(0.0, abs=1e-12)


def test_a_model_for_one_batch_size_trains_on_batches_of_that_size():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            rows = [self.conv(x)[i].mean((1, 2)) for i in range(len(x))]  # unrolled by the trace
            return torch.stack(rows)

    class Uneven(Task):
        def training(self, epoch):
            for index, count in enumerate((4, 4, 3)):
                yield batch_of(index, count)

    torch.manual_seed(0)
    x = batch_of(1, 4)
    traced, folded = trace_folded(Fixed().eval(), x.inputs)
    assert not traced.dynamic_batch
    units, _ = find_units(traced)
    fake = FakeQuantizer(traced, units, Calibration(traced, units, [x], CalibrationSettings()), QdqRules("affine"))
    plan = fake.plan({unit.path: Format.from_text("w2a8") for unit in units})
    tuned = finetune(
        Subject(Uneven(), traced, units, traced.module, folded, plan, "", ""), [x], FineTuneSettings(epochs=2)
    )
    assert tuned.history[-1]["step"] == 4
