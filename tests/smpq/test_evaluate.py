import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import UserError
from calib.formats import FP32
from calib.task import Batch
from smpq.evaluate import Evaluator, divergence
from smpq.groups import find_groups
from smpq.journal import Journal
from smpq.plan import Rules
from smpq.policy import Policy, Space
from smpq.quantize import FakeQuantizer
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


def space_for(network: Traced) -> Space:
    groups = find_groups(network.traced, network.units)
    return Space(groups, {group.name: (W8A8, W4A16, FP32) for group in groups}, FP32)


def batches_of(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch((torch.randn(n, 3, 8, 8, generator=generator),), torch.randint(0, CLASSES, (n,), generator=generator)) for n in sizes
    ]


def evaluator(
    network: Traced, sizes: tuple[int, ...] = (40, 7), task: object = None, rules: Rules | None = None, **options
) -> Evaluator:
    quantizer = FakeQuantizer(network.traced, network.units, network.calibration, rules or Rules("affine"))
    return Evaluator(quantizer, space_for(network), task or Task(), batches_of(*sizes), **options)


def test_the_float_policy_has_no_divergence_and_others_have(network):
    value = evaluator(network)
    assert value(value.space.uniform(FP32)) == pytest.approx(0.0, abs=1e-9)
    assert value(value.space.uniform(W8A8)) < -1e-6
    assert value(value.space.uniform(W4A16)) < value(value.space.uniform(W8A8))


@pytest.mark.parametrize("name", ["kl", "loss", "metric"])
def test_values_are_means_over_samples_of_batches_of_any_size(network, name):
    value = evaluator(network, value=name)
    policy = value.space.uniform(W4A16)
    quantizer = FakeQuantizer(network.traced, network.units, network.calibration, Rules("affine"))
    x, target = (torch.cat(parts) for parts in zip(*((b.inputs[0], b.target) for b in batches_of(40, 7)), strict=True))
    output = quantizer.run(policy.by_unit(value.space.groups), (x,))
    expected = {
        "kl": -F.kl_div(output.log_softmax(1), network.traced.run((x,)).log_softmax(1), log_target=True, reduction="batchmean"),
        "loss": -F.cross_entropy(output, target),
        "metric": (output.argmax(1) == target).float().mean(),
    }
    assert value(policy) == pytest.approx(float(expected[name]), rel=1e-4)


def test_a_policy_is_evaluated_once(network):
    value = evaluator(network)
    policy = value.space.uniform(W8A8)
    assert value(policy) == value(Policy(dict(reversed(policy.formats.items()))))
    assert value.evaluations == 1


def test_the_journal_prevents_repeats_after_a_kill(network, tmp_path):
    path = tmp_path / "journal.sqlite"
    first = evaluator(network, journal=Journal(path), fingerprint="weights")
    policy = first.space.uniform(W8A8)
    known = first(policy)
    second = evaluator(network, journal=Journal(path), fingerprint="weights")
    assert second(policy) == known
    assert second.evaluations == 0
    second(second.space.uniform(W4A16))
    assert second.evaluations == 1


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "other weights"}, {"value": "loss"}, {"rules": Rules("affine", outputs=True)},
     {"rules": Rules("affine", integer_bias=True)}, {"sizes": (40,)}],
    ids=["weights", "value", "outputs", "biases", "samples"],
)  # fmt: skip
def test_an_entry_made_under_other_settings_does_not_count(network, tmp_path, change):
    journal = Journal(tmp_path / "journal.sqlite")
    first = evaluator(network, journal=journal, fingerprint="weights")
    policy = first.space.uniform(W8A8)
    first(policy)
    second = evaluator(network, **{"journal": journal, "fingerprint": "weights", **change})
    second(policy)
    assert second.evaluations == 1
    third = evaluator(network, **{"journal": journal, "fingerprint": "weights", **change})
    third(policy)
    assert third.evaluations == 0


def test_a_task_brings_a_divergence_of_its_own(network):
    class Own(Task):
        def divergence(self, output, float_output):
            return (output - float_output).abs().mean(1) + 3.0

    value = evaluator(network, task=Own())
    assert value(value.space.uniform(FP32)) == pytest.approx(-3.0)


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
    quantizer = FakeQuantizer(network.traced, network.units, network.calibration, Rules("affine"))
    value = Evaluator(quantizer, space_for(network), Task(), [Batch((torch.randn(2, 4),), torch.zeros(2, dtype=torch.long))] * 2)
    assert value(value.space.uniform(W8A8)) < 0


def test_not_a_number_and_unknown_values_are_user_errors(network):
    class Broken(Task):
        def loss(self, output, target):
            return torch.full((len(target),), math.nan)

    value = evaluator(network, task=Broken(), value="loss")
    with pytest.raises(UserError, match="NaN"):
        value(value.space.uniform(W8A8))
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
    pixels, float_pixels = (t.transpose(1, 2).reshape(2, 4, 2, 3) for t in (ours, reference))  # images: classes on axis 1
    torch.testing.assert_close(divergence(pixels, float_pixels), per_token.mean(0))
    both = divergence({"a": ours, "b": [ours, torch.arange(3)]}, {"a": reference, "b": [reference, torch.arange(3)]})
    torch.testing.assert_close(both, 2 * per_token.mean(0))


def test_an_output_without_class_scores_is_a_user_error():
    with pytest.raises(UserError, match="divergence"):
        divergence(torch.randn(4), torch.randn(4))
