"""How sure a model is of each sample."""

import pytest
import torch

from calib.errors import UserError
from calib.task import Batch
from deploy.stages.confidences import confidences

INPUTS = (torch.zeros(2, 3),)
LABELLED = Batch(INPUTS, torch.tensor([0, 1]))
LOGITS = torch.tensor([[2.0, 0.0], [0.0, 0.0]])


def test_the_highest_probability_of_logits_and_of_probabilities():
    expected = LOGITS.double().softmax(1).amax(1)
    assert torch.equal(confidences(object(), LOGITS, LABELLED), expected)
    assert torch.allclose(confidences(object(), LOGITS.softmax(1), LABELLED), expected)


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (LOGITS, torch.tensor([0.5, 1.5])),  # two coordinates, say
        (LOGITS, None),
        (LOGITS, torch.tensor([[0, 1], [1, 0]])),
        (LOGITS[:, :1], LABELLED.target),
        ({"scores": LOGITS}, LABELLED.target),
        (LOGITS[:1], LABELLED.target),
    ],
)
def test_outputs_that_do_not_say(output, target):
    assert confidences(object(), output, Batch(INPUTS, target)) is None


def test_the_task_says_it():
    class Own:
        def confidences(self, output):
            return output[:, 0]

    assert torch.equal(confidences(Own(), LOGITS, LABELLED), LOGITS[:, 0].double())
    with pytest.raises(UserError, match=r"confidences\(\) must return one value per sample"):
        confidences(Own(), LOGITS[:, :, None], LABELLED)
