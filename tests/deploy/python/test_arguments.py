"""Batches as people have them, and arguments of `optimize` that nothing can be done with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from calib.errors import UserError
from calib.task import Batch
from deploy import optimize
from deploy.python.arguments import Arguments
from deploy.python.task import TaskInMemory
from tests.deploy.python.test_optimize import FASTER, right


def test_batches_as_people_have_them():
    model, x, y = Gated(), torch.zeros(2, 8), torch.zeros(2)

    def given(batch):
        (found,) = Arguments(model).batches([batch], "calibration")
        return found

    assert given(x) == Batch((x,), None)
    assert torch.equal(given(x.numpy()).inputs[0], x)
    assert torch.equal(given((x.numpy(), y)).inputs[0], x)
    rows = np.arange(16, dtype=np.float32).reshape(2, 8)
    for odd in (rows[:, ::-1], rows.astype(">f4")):
        assert np.array_equal(given((odd, y)).inputs[0].numpy(), odd)
    assert given([x]) == Batch((x,), None)
    assert given((x, y)) == Batch((x,), y)
    assert given((x, x, y)) == Batch((x, x), y)
    assert given(((x, x), y)) == Batch((x, x), y)
    assert given({"x": x, "labels": y}) == Batch((x,), y)
    assert given({"x": x}) == Batch((x,), None)
    assert given({"x": x, "a": y, "b": y}) == Batch((x,), {"a": y, "b": y})
    assert given(Batch((x,), y)) == Batch((x,), y)


class Gated(nn.Module):
    """Leaves out an argument in the middle, as many encoders can."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x, shift=None, gate=None, *, scale=None):
        hidden = torch.relu(self.first(x if shift is None else x + shift))
        hidden = hidden if gate is None else hidden * gate
        return self.last(hidden if scale is None else hidden * scale)


def gated(seed, *names):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"x": 8, "gate": 1, "scale": 1}
    return {name: torch.rand(16, sizes[name], generator=generator) for name in names}


@pytest.mark.parametrize("names", [("x", "gate"), ("gate", "x"), ("x", "scale")])
def test_arguments_of_a_dict_go_where_their_names_say(names, tmp_path):
    model = Gated().eval()
    data = [{**gated(seed, *names), "y": model(**gated(seed, *names)).argmax(1)} for seed in (1, 2)]
    result = optimize(model, data, data, right, out=tmp_path / "run", verbose=False, **FASTER)
    assert result.accuracy["eager"].mean == 1.0
    assert set(result.policy) == {"first", "last"}
    order = [name for name in ("x", "gate", "scale") if name in names]
    inputs = gated(3, *names)
    found = result.module(*(inputs[name] for name in order))
    assert torch.equal(result.module(**inputs), found)
    with pytest.raises(TypeError, match="missing a required argument"):
        result.module(inputs[order[0]])
    assert torch.nn.functional.cosine_similarity(found, model(**inputs)).min() > 0.9


def test_what_the_model_cannot_take_is_told():
    narrow = [torch.zeros(4, 3)]
    with pytest.raises(UserError, match="the model does not run with a batch: RuntimeError: mat1 and mat2"):
        optimize(Gated(), narrow, narrow, verbose=False, **FASTER)
    nowhere = [(torch.zeros(4, 8, device="meta"), torch.zeros(4))]
    with pytest.raises(UserError, match="input 0 of calibration batch 0 is on the meta device"):
        optimize(Gated(), nowhere, nowhere, right, verbose=False, **FASTER)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (torch.zeros(4, 8), "calibration is one array, whose rows would be batches: give a list"),
        (torch.zeros(4, 8).numpy(), "calibration is one array, whose rows would be batches: give a list"),
        (torch.utils.data.TensorDataset(torch.zeros(4, 8)), "calibration is a Dataset, .*: give a DataLoader of it"),
        ([{"image": torch.zeros(4, 8), "label": 1}], "a batch of image, label, and forward.. takes x: name the inputs"),
        ([(torch.zeros(4, 8), 1, ["path"])], "a batch with 2 inputs, .* and forward.. takes 1: give .inputs, target."),
        ([((torch.zeros(4, 8), None), 1)], "a batch with 2 inputs, .* and forward.. takes 1"),
    ],
)
def test_batches_that_are_not_what_they_seem_are_refused(batches, message):
    class Plain(Gated):
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(UserError, match=message):
        optimize(Plain(), batches, batches, right, verbose=False, **FASTER)


class There(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = property(lambda _: torch.device("cuda:0"))


def test_what_is_on_a_gpu_is_told(tmp_path):
    model, data = Gated(), [gated(1, "x")["x"]]
    model.register_buffer("shift", There(torch.zeros(8)))
    with pytest.raises(UserError, match=r"'shift' of the model is on cuda:0: hand over model.cpu\(\)"):
        optimize(model, data, data, right, out=tmp_path / "run", verbose=False, **FASTER)
    far = [(There(data[0]), torch.zeros(16))]
    with pytest.raises(UserError, match=r"input 0 of calibration batch 0 is on cuda:0: give tensor.cpu\(\)"):
        optimize(Gated(), far, far, right, out=tmp_path / "run", verbose=False, **FASTER)


def test_a_loader_may_write_its_next_batch_over_the_one_before():
    def reusing():
        place, label = np.zeros((2, 8), np.float32), torch.zeros(2)
        for number in (1.0, 2.0):
            place[:], label[:] = number, number
            yield place, {"y": label}

    task = TaskInMemory("in-memory", Gated(), reusing(), reusing(), right, training=reusing())
    for batches in (task.calibration(), task.evaluation(), list(task.training(0))):
        assert [float(batch.inputs[0].mean()) for batch in batches] == [1.0, 2.0]
        assert [float(batch.target["y"].mean()) for batch in batches] == [1.0, 2.0]


def test_an_output_that_no_engine_gives_is_told_before_the_work(tmp_path):
    class Ending(Gated):
        def forward(self, x):
            return super().forward(x).bfloat16()

    data = [gated(1, "x")["x"]]
    with pytest.raises(UserError, match=r"the model's output is bfloat16, .* make it tensor.float\(\)"):
        optimize(Ending(), data, data, out=tmp_path / "run", verbose=False, **FASTER)
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_not_finite_is_not_called_a_target():
    with pytest.raises(UserError, match="what the model gives for a batch holds NaN"):
        TaskInMemory("in-memory", Logarithm(), [torch.randn(2, 8)], [torch.randn(2, 8)], None)


class Logarithm(Gated):
    def forward(self, x):
        return {"logarithm": x.log(), "scores": super().forward(x)}


def test_batches_of_other_arguments_are_refused():
    data = [gated(1, "x", "gate"), gated(2, "x")]
    with pytest.raises(UserError, match="calibration has a batch with the arguments x, and the first of all has x, ga"):
        optimize(Gated(), data, data, right, verbose=False, **FASTER)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": len}, "the model must be a torch.nn.Module, not"),
        ({"model": Gated().to("meta")}, "of the model is on the meta device"),
        ({"budget": 0.5}, "the budget must be a text, not 0.5"),
        ({"budget": ""}, "the budget is empty"),
        ({"budget": "drop=-1"}, "'-1' is no number above zero"),
        ({"seconds": "5"}, "seconds must be a number above zero, not '5'"),
        ({"seconds": 0}, "seconds must be a number above zero, not 0"),
        ({"pins": "head=fp32"}, r"^pins= holds several: give a tuple, as \('head=fp32',\)"),
        ({"samples": 0}, "^samples= must be a whole number"),
        ({"finetune": -1, "training": [gated(2, "x")]}, "^finetune= must be a number"),
        ({"reconstruct": "none"}, "^reconstruct= must be one of .*mse"),
        ({"finetune": 1, "reconstruct": "mse"}, "give one of finetune= and reconstruct="),
    ],
)
def test_arguments_that_nothing_can_be_done_with(changed, message):
    data = [gated(1, "x")]
    asked = {"model": Gated(), "calibration": data, "evaluation": data, "verbose": False, **FASTER, **changed}
    with pytest.raises(UserError, match=message):
        optimize(**asked)


def test_a_forward_without_a_signature_takes_inputs_by_position():
    traced = nn.Module()
    traced.forward = {}.update  # as the forward() of what torch.jit has traced, it has none
    x, arguments = torch.zeros(2, 3), Arguments(traced)
    assert list(arguments.batches([(x, None)], "calibration")) == [Batch((x,), None)]
    assert arguments.names(1) == ["input_0"]
