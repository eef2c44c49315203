import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import UserError
from calib.formats.format import FP32
from calib.network.execution import signatures
from calib.task import Batch
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.divergence import divergence
from smpq.value.evaluate import Evaluator
from smpq.value.incremental import bytes_per_sample
from smpq.value.parts import samples_at_once
from smpq.value.value import PolicyValue
from tests.smpq.problems import W4A16, W8A8, Traced, residual

CLASSES = 5


class Task:
    name, metric_name = "toy", "top-1"

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")


@pytest.fixture(scope="module")
def network() -> Traced:
    return residual()


def pickled(made):
    return pickle.loads(pickle.dumps(made))  # noqa: TID251 - our own bytes


def space_for(network: Traced) -> Space:
    groups = find_groups(network.traced, network.units)
    return Space(groups, {group.name: (W8A8, W4A16, FP32) for group in groups}, FP32)


def batches_of(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch((torch.randn(n, 3, 8, 8, generator=generator),), torch.randint(0, CLASSES, (n,), generator=generator))
        for n in sizes
    ]


def evaluator(
    network: Traced, sizes: tuple[int, ...] = (40, 7), task: object = None, rules: QdqRules | None = None, **options
) -> Evaluator:
    quantizer = FakeQuantizer(network.traced, network.units, network.calibration, rules or QdqRules("affine"))
    return Evaluator(PolicyValue(quantizer, space_for(network), task or Task(), batches_of(*sizes), **options))


def test_the_float_policy_has_no_divergence_and_others_have(network):
    value = evaluator(network)
    assert value(space_for(network).uniform(FP32)) == pytest.approx(0.0, abs=1e-9)
    assert value(space_for(network).uniform(W8A8)) < -1e-6
    assert value(space_for(network).uniform(W4A16)) < value(space_for(network).uniform(W8A8))


@pytest.mark.parametrize("name", ["kl", "loss", "metric"])
def test_values_are_means_over_samples_of_batches_of_any_size(network, name):
    value = evaluator(network, value=name)
    policy = space_for(network).uniform(W4A16)
    quantizer = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine"))
    x, target = (torch.cat(parts) for parts in zip(*((b.inputs[0], b.target) for b in batches_of(40, 7)), strict=True))
    output = quantizer.run(policy.by_unit(space_for(network).groups), (x,))
    expected = {
        "kl": -F.kl_div(
            output.log_softmax(1), network.traced.run((x,)).log_softmax(1), log_target=True, reduction="batchmean"
        ),
        "loss": -F.cross_entropy(output, target),
        "metric": (output.argmax(1) == target).float().mean(),
    }
    assert value(policy) == pytest.approx(float(expected[name]), rel=1e-3)


def test_a_task_brings_a_divergence_of_its_own(network):
    class Own(Task):
        def divergence(self, output, float_output):
            return (output - float_output).abs().mean(1) + 3.0

    value = evaluator(network, task=Own())
    assert value(space_for(network).uniform(FP32)) == pytest.approx(-3.0)


def test_a_model_of_one_batch_size_is_evaluated_at_that_size():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, x):
            return torch.stack([self.layer(row[None])[0] for row in x])

    torch.manual_seed(0)
    network = Traced(Unrolled(), torch.randn(2, 4))
    assert not network.traced.dynamic_batch
    quantizer = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine"))
    batches = [Batch((torch.randn(2, 4),), torch.zeros(2, dtype=torch.long))] * 2
    value = Evaluator(PolicyValue(quantizer, space_for(network), Task(), batches))
    assert value(space_for(network).uniform(W8A8)) < 0


def test_not_a_number_and_unknown_values_are_user_errors(network):
    class Broken(Task):
        def loss(self, output, target):
            return torch.full((len(target),), math.nan)

    value = evaluator(network, task=Broken(), value="loss")
    with pytest.raises(UserError, match="NaN"):
        value(space_for(network).uniform(W8A8))
    with pytest.raises(UserError, match="kl, loss, metric"):
        evaluator(network, value="accuracy")


def test_divergence_by_hand():
    ours, reference = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    p, q = torch.softmax(reference[1], 0), torch.softmax(ours[1], 0)
    expected = [0.0, float((p * (p / q).log()).sum())]
    assert divergence(ours, reference).tolist() == pytest.approx(expected, abs=1e-6)


def test_divergence_over_tokens_pixels_and_several_outputs():
    torch.manual_seed(0)
    ours, reference = torch.randn(2, 6, 4), torch.randn(2, 6, 4)  # tokens: classes last
    per_token = torch.stack([divergence(ours[:, i], reference[:, i]) for i in range(6)])
    torch.testing.assert_close(divergence(ours, reference), per_token.mean(0))
    pixels, float_pixels = (
        t.transpose(1, 2).reshape(2, 4, 2, 3) for t in (ours, reference)
    )  # images: classes on axis 1
    torch.testing.assert_close(divergence(pixels, float_pixels), per_token.mean(0))
    both = divergence({"a": ours, "b": [ours, torch.arange(3)]}, {"a": reference, "b": [reference, torch.arange(3)]})
    torch.testing.assert_close(both, 2 * per_token.mean(0))


def test_a_single_channel_counts_by_its_squared_difference():
    reference = torch.tensor([[1.0], [2.0], [3.0]])
    assert divergence(reference + torch.tensor([[0.0], [1.0], [2.0]]), reference).tolist() == [0, 0.5, 2]
    image, other = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    other[1, 0, 0, 0] = 2
    assert divergence(other, image).tolist() == [0, 0.5], "the mean over pixels"
    tokens = torch.zeros(2, 4, 1)
    assert divergence(tokens + 1, tokens).tolist() == [0.5, 0.5]


def test_numbers_of_samples_count_where_there_are_no_others():
    ours, reference = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])
    assert divergence(ours, reference).tolist() == [0, 2]
    scores = torch.randn(2, 3)
    assert torch.equal(divergence((scores, ours), (scores + 1, reference)), divergence(scores, scores + 1))


def test_outputs_without_a_row_for_each_sample_are_told():
    states = (torch.randn(4, 5), torch.randn(2, 4, 3))
    with pytest.raises(UserError, match="have 2, 4 rows, so some have not one for each sample: put the samples first"):
        divergence(states, states)


def test_an_output_without_numbers_is_a_user_error():
    with pytest.raises(UserError, match="divergence"):
        divergence(torch.tensor([1, 2]), torch.tensor([1, 2]))


@pytest.mark.parametrize("name", ["kl", "loss", "metric"])
def test_together_gives_the_same_numbers_as_one_by_one(network, name):
    space = space_for(network)
    quantizer = FakeQuantizer(
        network.traced, network.units, network.calibration, QdqRules("affine", outputs=True, integer_bias=True)
    )
    compute = PolicyValue(quantizer, space, Task(), batches_of(40, 7), name)
    drawn = [
        Policy({group: row[int(choice)] for (group, row), choice in zip(space.formats.items(), choices, strict=True)})
        for choices in np.random.default_rng(0).integers(3, size=(25, len(space.groups)))
    ]
    together = dict(compute(drawn))
    assert [together[index] for index in range(25)] == [compute([policy])[0][1] for policy in drawn]


def test_what_the_values_depend_on_is_told(network):
    space = space_for(network)
    fake = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine"))
    outputs = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine", outputs=True))
    identities = {
        PolicyValue(fake, space, Task(), batches_of(40, 7)).identity,
        PolicyValue(fake, space, Task(), batches_of(40, 7), "loss").identity,
        PolicyValue(fake, space, Task(), batches_of(40)).identity,
        PolicyValue(outputs, space, Task(), batches_of(40, 7)).identity,
    }
    assert len(identities) == 4


def test_a_memory_limit_makes_the_parts_smaller_and_changes_no_value(network):
    space = space_for(network)
    fake = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine"))
    free, limited = samples_at_once(fake, None), samples_at_once(fake, 0.1)
    assert 1 <= limited < free
    assert limited * bytes_per_sample(network.traced, network.units) <= 0.1 * 2**20
    policy = space.uniform(W8A8)
    values = [
        PolicyValue(fake, space, Task(), batches_of(40, 7), memory_mb=limit)([policy])[0][1] for limit in (None, 0.1)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-7)


def test_a_limit_below_one_sample_is_a_user_error():
    big = Traced(nn.Sequential(nn.Conv2d(1, 40, 3), nn.Conv2d(40, 1, 3)), torch.randn(2, 1, 160, 160))
    fake = FakeQuantizer(big.traced, big.units, big.calibration, QdqRules("affine"))
    with pytest.raises(UserError, match="memory limit of 1 MB"):
        samples_at_once(fake, 1)


@pytest.mark.parametrize("name", ["kl", "loss", "metric"])
@pytest.mark.parametrize("rules", [QdqRules("affine"), QdqRules("affine", outputs=True, skips=True, integer_bias=True)])
def test_a_pickled_copy_gives_the_same_values_without_calibration_data(network, name, rules):
    space = space_for(network)
    fresh = residual()  # nothing is worked out yet when the copy is made
    compute = PolicyValue(
        FakeQuantizer(fresh.traced, fresh.units, fresh.calibration, rules), space, Task(), batches_of(40, 7), name
    )
    copy = pickled(compute)
    drawn = [
        Policy({group: row[int(choice)] for (group, row), choice in zip(space.formats.items(), choices, strict=True)})
        for choices in np.random.default_rng(1).integers(3, size=(25, len(space.groups)))
    ]
    assert dict(copy(drawn)) == dict(compute(drawn))
    assert copy.identity == compute.identity
    calibration = copy._fake_quantizer.calibration
    assert not hasattr(calibration, "_observed")
    assert not hasattr(calibration, "_moments")
    first, second = (
        copy._fake_quantizer.edits(copy._fake_quantizer.plan(drawn[0].by_unit(space.groups))) for _ in range(2)
    )
    assert signatures(copy._fake_quantizer.traced, first) == signatures(copy._fake_quantizer.traced, second), (
        "equal edits are one object"
    )


def test_a_copy_takes_along_no_task_that_it_does_not_use(network):
    class Local(Task):
        """Cannot be pickled."""

    space = space_for(network)
    quantizer = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine"))
    batches = [Batch(batch.inputs, lambda: None) for batch in batches_of(8)]
    copy = pickled(PolicyValue(quantizer, space, Local(), batches))
    assert copy([space.uniform(W8A8)])[0][1] < 0
    with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
        pickle.dumps(PolicyValue(quantizer, space, Local(), batches_of(8), "loss"))


@pytest.mark.parametrize(("sizes", "value", "folds"), [((128, 128), "kl", 4), ((100,), "kl", 0), ((256,), "metric", 0)])
def test_the_samples_have_parts_whose_mean_is_the_whole(network, sizes, value, folds):
    """None of less than 64 samples; a share of 0 and 1 needs all of them."""
    whole, space = evaluator(network, sizes, value=value), space_for(network)
    asked = [space.uniform(W8A8), space.uniform(W4A16)]
    assert len(whole.folds) == folds
    if folds:
        means = np.mean([fold.many(asked) for fold in whole.folds], axis=0)
        assert means == pytest.approx(np.array(whole.many(asked)), rel=1e-5, abs=1e-9)
        assert whole.folds[0].many(asked) != whole.folds[1].many(asked)
        assert whole.folds is whole.folds, "what a part has evaluated is kept"


def test_batches_without_targets_have_the_same_parts(network):
    space, (batch,) = space_for(network), batches_of(256)
    fake = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine"))
    labelled, bare = (PolicyValue(fake, space, Task(), [each]) for each in (batch, Batch(batch.inputs, None)))
    assert bare.folds == labelled.folds == 4
    assert bare.fold(1)([space.uniform(W8A8)]) == labelled.fold(1)([space.uniform(W8A8)])


@pytest.mark.parametrize("sizes", [(128, 128), (100, 70, 130)])
def test_what_parts_have_evaluated_is_not_evaluated_again(network, sizes):
    """The value of all samples is the same number, bit by bit, whatever was known of it."""
    policies = [space_for(network).uniform(chosen) for chosen in (W8A8, W4A16)]
    straight, value = evaluator(network, sizes), evaluator(network, sizes)
    assert len(value.folds) > 2
    value.folds[0].many(policies)
    value.folds[2](policies[0])
    asked = [*policies, space_for(network).uniform(FP32)]
    assert value.many(asked) == straight.many(asked)
    assert value.evaluations == 1, "the one of which nothing was known"
    assert [fold.evaluations for fold in value.folds] == [2] * len(value.folds)
    assert value.many(asked) == straight.many(asked)
