import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from calib.data import check_batches, check_model, each_batch, per_sample
from calib.errors import UserError
from calib.task import Batch
from smpq.value.set_metric import _of_each


def batches(count=3, size=4):
    return [Batch((torch.full((size, 2), float(index)),), torch.zeros(size)) for index in range(count)]


class Raises:
    def __iter__(self):
        yield batches()[0]
        raise OSError("disk gone")


def test_batches_pass_through():
    given = batches()
    got = list(each_batch(given, "calibration"))
    assert [batch.inputs[0].tolist() for batch in got] == [batch.inputs[0].tolist() for batch in given]


def test_a_plain_tensor_becomes_a_tuple():
    (batch,) = list(each_batch([[torch.ones(2, 3), torch.tensor([0, 1])]], "calibration"))
    assert isinstance(batch, Batch)
    assert isinstance(batch.inputs, tuple)
    assert batch.inputs[0].shape == (2, 3)


def test_a_data_loader_is_read():
    loader = DataLoader(TensorDataset(torch.arange(10.0).view(10, 1), torch.arange(10)), batch_size=4)
    assert [len(batch.target) for batch in list(each_batch(loader, "calibration"))] == [4, 4, 2]
    check_batches(loader)


def bad_target():
    return Batch((torch.ones(2, 1),), torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no batch"),
        (iter([]), "no batch"),
        (7, "int"),
        (Raises(), "OSError: disk gone"),
        ([torch.ones(3, 2)], "batch 0 must be"),
        ([{"x": torch.ones(2)}], "dict"),
        ([(torch.ones(2, 1), torch.ones(2), torch.ones(2))], "pair"),
        ([("text", 1)], "str"),
        ([((), 1)], "tuple of tensors"),
        ([(torch.tensor(1.0), 1)], "first dimension"),
        ([(torch.ones(0, 3), torch.ones(0))], "first dimension"),
        ([((torch.ones(2, 1), torch.ones(3, 1)), 0)], r"\[2, 3\]"),
        ([(torch.ones(2, 1), torch.ones(3))], "2 samples and 3 targets"),
        ([(torch.ones(2, 1), 0), (torch.tensor([[1.0], [float("nan")]]), 0)], "batch 1 holds NaN"),
        ([(torch.tensor([[float("inf")]]), 0)], "infinite"),
        ([bad_target()], "target of calibration batch 0 holds NaN"),
        (
            [(torch.ones(2, 1).to_sparse(), 0)],
            r"input 0 of calibration batch 0 is a sparse tensor.*tensor.to_dense\(\)",
        ),
        ([(torch.ones(2, 1), torch.ones(2, 1).to_sparse())], "the target of calibration batch 0 is a sparse tensor"),
        ([(torch.ones(2, 1).bfloat16(), 0)], r"input 0 of calibration batch 0 is bfloat16.* tensor.float\(\)"),
        ([(torch.ones(2, 1, dtype=torch.complex64), 0)], r"is complex64.* torch.view_as_real\(tensor\)"),
        ([(torch.ones(2, 1), 0), (torch.ones(2, 1, 1), 0)], "only sizes may differ"),
        ([(torch.ones(2, 1), 0), (torch.ones(2, 1).double(), 0)], "float64"),
        ([(torch.ones(2, 1), 0), ((torch.ones(2, 1), torch.ones(2, 1)), 0)], "2 inputs"),
    ],
)
def test_wrong_batches_are_user_errors(given, message):
    with pytest.raises(UserError, match=message):
        list(each_batch(given, "calibration"))


def test_the_message_names_the_method():
    with pytest.raises(UserError, match=r"evaluation\(\) gave no batch"):
        list(each_batch([], "evaluation"))


def test_a_used_up_generator_is_found():
    with pytest.raises(UserError, match="second time"):
        check_batches(batch for batch in batches(1))
    with pytest.raises(UserError, match="no batch"):
        check_batches([])


def test_shuffling_is_found():
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.arange(64.0).view(64, 1), torch.arange(64)), batch_size=8, shuffle=True)
    with pytest.raises(UserError, match="shuffling"):
        check_batches(loader)


def test_a_model_with_nan_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert check_model(model) is model
    model[1].running_var[0] = float("inf")
    with pytest.raises(UserError, match=r"'1\.running_var'.*infinite"):
        check_model(model)
    with torch.no_grad():
        model[0].weight[1, 1] = float("nan")
    with pytest.raises(UserError, match=r"'0\.weight'.*NaN"):
        check_model(model)


def test_what_is_no_module_is_no_model():
    with pytest.raises(UserError, match="function"):
        check_model(test_what_is_no_module_is_no_model)


@pytest.mark.parametrize(
    ("make", "what", "origin"),
    [
        (torch.jit.trace, "the model", "torch.jit"),
        (lambda model, x: torch.jit.script(model), "the model", "torch.jit"),
        (lambda model, x: torch.export.export(model, (x,)).module(), "the model", "torch.export"),
        (lambda model, x: nn.Sequential(torch.export.export(model, (x,)).module()), "'0' of the model", "torch.export"),
        (lambda model, x: nn.Sequential(torch.jit.script(model)), "'0' of the model", "torch.jit"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_module_without_a_forward_of_its_own_is_told(make, what, origin):
    model = make(nn.Linear(2, 3).eval(), torch.ones(2, 2))
    with pytest.raises(UserError, match=f"^{what} comes from {origin}: hand over the torch.nn.Module"):
        check_model(model)


def test_a_traced_graph_of_torch_fx_is_a_model():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert check_model(model) is model


def test_a_sparse_weight_is_named():
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(3).to_sparse())
    with pytest.raises(UserError, match=r"'weight' of the model is a sparse tensor"):
        check_model(model)


def test_another_default_type_is_told():
    model = nn.Linear(2, 2)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match=r"default type is float64.*set_default_dtype\(torch.float32\)"):
            check_model(model)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_lazy_model_is_named(recwarn):
    with pytest.raises(UserError, match=r"'weight' of the model has no shape yet: run a lazy model on one batch"):
        check_model(nn.LazyLinear(3))
    recwarn.clear()


def test_what_was_made_under_inference_mode_takes_gradients():
    with torch.inference_mode():
        given, taught = torch.ones(2, 3), {"labels": torch.zeros(2), "names": ["a", "b"]}
    ((inputs, target),) = each_batch([(given, taught)], "calibration")
    assert not inputs[0].is_inference()
    assert not target["labels"].is_inference()
    assert target["names"] == ["a", "b"]
    (inputs[0] * torch.ones(2, 3, requires_grad=True)).sum().backward()
    ((_, same),) = each_batch([(torch.ones(2, 3), target)], "calibration")
    assert same is target


def test_inputs_are_handed_on_without_their_gradient_and_in_their_layout():
    given = torch.arange(6.0).reshape(3, 2).requires_grad_()
    ((inputs, _),) = each_batch([(given.t(), None)], "calibration")
    assert not inputs[0].requires_grad
    assert inputs[0].stride() == given.t().stride()
    assert torch.equal(inputs[0], given.t())


def test_a_function_of_the_task_leaves_its_arguments_alone():
    def zeroed(output, target):
        target["mask"][output[:, 0] > 9] = 0  # writes, even where nothing is chosen
        return output[:, 0]

    arguments = (torch.ones(2, 3), {"mask": torch.ones(2)})
    with pytest.raises(UserError, match=r"the task's metric\(\) changes its arguments, .* as output.clone\(\)"):
        per_sample(zeroed, arguments, 2, "metric")
    with pytest.raises(UserError, match=r"the task's records\(\) changes its arguments"):
        _of_each(lambda output, target: output.sigmoid_(), arguments, 2, "records")
    assert per_sample(lambda output, target: output[:, 0].clone().zero_(), arguments, 2, "metric").tolist() == [0, 0]
