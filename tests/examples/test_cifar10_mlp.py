import pytest
import torch
from safetensors.torch import save_file

from calib.data import check_batches
from calib.errors import UserError
from calib.tasks import load_task
from examples import cifar10_mlp
from examples.cifar10_mlp import RECIPE, Mlp


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_file(Mlp().state_dict(), tmp_path / "mlp.safetensors")
    return tmp_path / "mlp.safetensors"


def test_given_weights_are_used(weights):
    task = load_task("examples.cifar10_mlp:task", None, weights)
    torch.manual_seed(0)
    expected = Mlp()
    batch = next(iter(task.evaluation()))
    assert batch.inputs[0].shape[1:] == (3072,)
    assert torch.equal(task.model()(*batch.inputs), expected(*batch.inputs))


def test_the_synthetic_problem_is_the_same_every_time(weights):
    one, two = (load_task("examples.cifar10_mlp:task", None, weights) for _ in range(2))
    check_batches(one.calibration())
    for a, b in zip(one.calibration(), two.calibration(), strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0])
        assert torch.equal(a.target, b.target)
    assert sum(len(batch.target) for batch in one.calibration()) == 1024


def test_it_learns_the_synthetic_problem(monkeypatch):
    """An eighth of its hidden units shows it in a fifth of the time."""
    monkeypatch.setattr(cifar10_mlp, "HIDDEN", 128)
    monkeypatch.setattr(cifar10_mlp, "RECIPE", {**RECIPE, "hidden": 128})
    task = load_task("examples.cifar10_mlp:task")
    model = task.model()
    with torch.no_grad():
        correct = torch.cat([task.metric(model(*batch.inputs), batch.target) for batch in task.evaluation()])
    assert correct.mean() > 0.85


def test_a_wrong_directory_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="data_batch_1"):
        load_task("examples.cifar10_mlp:task", tmp_path)
