import pytest
import torch
from torch import nn

from calib.data import check_batches, check_model, each_batch
from calib.errors import UserError
from calib.tasks import load_task


def test_the_example_learns_and_holds_what_it_promises():
    task = load_task("examples.custom_task:task")
    model = check_model(task.model())
    check_batches(task.calibration())
    evaluation = list(each_batch(task.evaluation(), "evaluation"))
    with torch.no_grad():
        correct = torch.cat([task.metric(model(*batch.inputs), batch.target) for batch in evaluation])
    assert correct.mean() > 0.88
    layers = list(model.modules())
    assert any(isinstance(layer, nn.ConvTranspose2d) for layer in layers)
    assert any(isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 for layer in layers)

    calls, ranks = [], []
    model.twice.register_forward_hook(lambda *_: calls.append(1))
    model.mix.register_forward_hook(lambda _, inputs, __: ranks.append(inputs[0].dim()))
    with torch.no_grad():
        model(*evaluation[0].inputs)
    assert len(calls) == 2
    assert ranks == [3]


def test_it_takes_no_paths(tmp_path):
    with pytest.raises(UserError, match="--data"):
        load_task("examples.custom_task:task", tmp_path, None)
