"""Modules that do not compute what their trace does, each caught by a batch size, a second call or a change of
state.
"""

import copy
import random
import re
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.network.agreement import Agreement
from calib.network.faithful import UnfaithfulError, check_faithful
from calib.network.fold import trace_folded
from calib.task import Batch


class Around(nn.Module):
    """A small network, and what a test does with its result."""

    def __init__(self, then):
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.calls, self.seen, self.cache, self.first = 0, [], None, True
        self.then = then

    def forward(self, x):
        return self.then(self, F.relu(self.norm(self.layer(x))))


def network(then):
    torch.manual_seed(0)
    model = Around(then).eval()
    nn.init.normal_(model.norm.running_mean)
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    return model


def data(count=3, samples=8):
    generator = torch.Generator().manual_seed(1)
    return [Batch((torch.randn(samples, 4, generator=generator),), None) for _ in range(count)]


def checked(then, sizes=(1,), batches=None, free=True):
    model = network(then)
    example = tuple(tensor[: 2 if free else None] for tensor in data()[0].inputs)
    traced, _ = trace_folded(model, example, sizes, free=free)
    assert traced.dynamic_batch is free
    check_faithful(model, traced, batches or data(), sizes)
    return model


def counted(self, y):
    self.calls += 1
    return y


def listed(self, y):
    self.seen.append(len(self.seen))
    return y


def cached_constant(self, y):
    if self.cache is None:
        self.cache = torch.linspace(0, 1, 6)
    return y + self.cache


FAITHFUL = {
    "plain": lambda self, y: y,
    "counter": counted,
    "list": listed,
    "cache": cached_constant,
    "dictionary": lambda self, y: {"y": y, "nothing": None, "top": y.argmax(1), "positive": y > 0, "mean": y.mean()},
    "infinite": lambda self, y: y.masked_fill(y == 0, float("-inf")),
    "in_place": lambda self, y: y.mul_(2)[:, :3].add_(1),
    "selected": lambda self, y: y[y.sum(1) > 1],
    "mixed": lambda self, y: y - y.mean(0),
}


@pytest.mark.parametrize("then", FAITHFUL.values(), ids=FAITHFUL)
def test_faithful_traces_pass(then):
    model = checked(then, sizes=(1, 5, 8))
    assert all(parameter.requires_grad for parameter in model.parameters())


def times_calls(self, y):
    self.calls += 1
    return y * self.calls


def late(self, y):
    self.calls += 1
    return y if self.calls < 900 else -y


def long_list(self, y):
    self.seen.append(1)
    return y if len(self.seen) < 900 else -y


def cached_data(self, y):
    if self.cache is None:
        self.cache = y.mean().detach()
    return y + self.cache


def first_call(self, y):
    if self.first:
        self.first = False
        return y
    return -y


def last_output(self, y):
    before, self.cache = self.cache, y.detach()
    return y if before is None else y + before.mean()


UNFAITHFUL = {
    "one_sample": (lambda self, y: y.flip(1) if y.shape[0] == 1 else y, "on one sample"),
    "one_sample_type": (lambda self, y: y.double() if y.shape[0] == 1 else y, "float32 .* and not torch.float64"),
    "one_sample_nesting": (lambda self, y: (y, y) if y.shape[0] == 1 else (y,), "on one sample"),
    "calls": (times_calls, "does not compute what the model does"),
    "many_calls": (late, r"depends on what forward\(\) keeps in calls"),
    "many_calls_in_a_list": (long_list, r"depends on what forward\(\) keeps in seen"),
    "cached_data": (cached_data, "does not compute what the model does"),
    "first_call": (first_call, "does not compute what the model does"),
    "last_output": (last_output, "does not compute what the model does"),
    "clock": (lambda self, y: y * (time.perf_counter() % 1), "does not compute what the model does"),
    "random": (lambda self, y: y * random.random(), "does not compute what the model does"),
    "exporting": (lambda self, y: y if torch.compiler.is_exporting() else 2 * y, "calibration batch 0"),
}


@pytest.mark.parametrize(("then", "message"), UNFAITHFUL.values(), ids=UNFAITHFUL)
def test_unfaithful_traces_are_refused(then, message):
    with pytest.raises(UserError, match=message):
        checked(then)


def test_a_model_that_does_not_run_with_one_sample_has_no_free_batch():
    def several(self, y):
        if y.shape[0] == 1:
            raise ValueError("a pair, please")
        return y

    with pytest.raises(UnfaithfulError, match="the model fails on one sample: ValueError: a pair, please") as error:
        checked(several)
    assert error.value.samples == 1
    checked(several, sizes=(), free=False)


def test_a_fixed_batch_is_compared_at_its_size_alone():
    checked(lambda self, y: y.flip(1) if y.shape[0] == 1 else y, sizes=(), free=False)


def test_the_wrong_weights_are_noticed():
    model = network(lambda self, y: y)
    traced, _ = trace_folded(copy.deepcopy(model), (torch.randn(2, 4),))
    with torch.no_grad():
        model.layer.weight[2, 1] += 0.01
    with pytest.raises(UnfaithfulError, match="output differs by up to"):
        check_faithful(model, traced, data())


def test_an_output_in_the_memory_of_the_module_is_not_taken_for_its_earlier_self():
    class Accumulates(nn.Module):
        def __init__(self):
            super().__init__()
            self.sums = {}

        def forward(self, x):
            total = self.sums.setdefault(tuple(x.shape), torch.zeros_like(x))
            return total.add_(1e-2)

    traced, _ = trace_folded(nn.Identity().eval(), (torch.randn(2, 4),))
    traced.run = lambda inputs: torch.full_like(inputs[0], 1e-2)
    with pytest.raises(UserError, match="something else when it is called again"):
        check_faithful(Accumulates().eval(), traced, data(1))


def test_a_changed_parameter_is_named():
    model = network(lambda self, y: y)
    traced, _ = trace_folded(model, (torch.randn(2, 4),))

    def change(*_):
        model.layer.bias.data.add_(1e-7)

    model.register_forward_hook(change)
    with pytest.raises(UserError, match=r"changes the parameter 'layer\.bias'"):
        check_faithful(model, traced, data())


def test_inputs_are_left_alone():
    batches = data()
    before = [batch.inputs[0].clone() for batch in batches]

    class Changes(nn.Module):
        def forward(self, x):
            return x.mul_(2) + 1

    model = Changes().eval()
    check_faithful(model, trace_folded(model, (torch.randn(2, 4),))[0], batches)
    assert all(torch.equal(one, batch.inputs[0]) for one, batch in zip(before, batches, strict=True))


Y = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (Y * (1 + 1e-5), Y, None),
        (Y * (1 + 1e-2), Y, "differs by up to"),
        (Y + 1000, Y + 1000.0001, None),
        (torch.cat([Y * 1000, Y], 1), torch.cat([Y * 1000, Y.flip(0)], 1), "differs by up to"),
        (Y.argmax(1), Y.argmax(1), None),
        (Y.argmax(1), (-Y).argmax(1), "differs"),
        (Y.repeat(300, 1).argmax(1), Y.repeat(300, 1).argmax(1).index_fill(0, torch.tensor(0), 3), None),
        (Y > 0, Y > 0.1, "differs"),
        (Y.sum(), Y.sum() * (1 + 1e-5), None),
        (Y.sum(), Y.sum() * 1.1, "differs by up to"),
        ([Y, None], [Y, None], None),
        ([Y, None], [Y, Y], "and not"),
        ([Y], [Y, Y], "the output is"),
        ({"a": Y}, {"b": Y}, "the output is"),
        (Y, Y.double(), "float32 .* and not torch.float64"),
        (Y, Y[:, None], r"\[64, 10\] and not"),
        (Y.log(), Y.log(), None),
        (Y.log().nan_to_num(0), Y.log(), "not finite at the same places"),
        (Y, Y.masked_fill(Y > 2, torch.inf), "not finite at the same places"),
        (Y * 1j, Y * 1j * 1.1, "differs by up to"),
        (torch.zeros(4, 3), torch.zeros(4, 3), None),
        (torch.zeros(4, 3), torch.full((4, 3), 1e-6), "differs by up to"),
        (torch.zeros(0, 3), torch.zeros(0, 3), None),
        ([Y, 3], [Y, 3], None),
        ([Y, 3], [Y, 4], "is 3 and not 4"),
    ],
)
def test_agreement(found, expected, words):
    problem = Agreement(expected).difference(found, expected)
    if words is None:
        assert problem is None
    else:
        assert problem is not None
        assert re.search(words, problem), problem


def test_a_module_that_tells_layouts_apart_is_refused():
    class Looks(nn.Module):
        def forward(self, x):
            return x * (1 if x.is_contiguous() else 2)

    model = Looks().eval()
    traced, _ = trace_folded(model, (torch.randn(2, 4),))
    check_faithful(model, traced, data())
    transposed = [Batch((torch.randn(4, 8).t(),), None)]
    with pytest.raises(UserError, match="layout in memory"):
        check_faithful(model, traced, transposed)


def test_what_depends_on_the_call_just_before_is_refused():
    """No two batches that follow each other have one size, so that only two calls in a row tell."""

    def minus_the_last(self, y):
        last, self.cache = self.cache, y
        return y if last is None or last.shape != y.shape else y - last

    with pytest.raises(UserError, match="gives something else when it is called again"):
        checked(minus_the_last, batches=[*data(1, 5), *data(1, 3)])


class Sample(dict):
    """An output as diffusers has it: registered without names for its parts."""


pytree.register_pytree_node(
    Sample,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: Sample(zip(names, values, strict=True)),
    serialized_type_name="tests.Sample",
)


def test_an_output_whose_class_names_no_parts_is_compared():
    model, x = network(lambda _, y: Sample(sample=y)), torch.randn(3, 4)
    traced, _ = trace_folded(model, (x[:2],))
    check_faithful(model, traced, [Batch((x,), None)])
    expected = model(x)
    shifted = Sample(sample=expected["sample"] + 1)
    assert Agreement(expected).difference(shifted, expected).startswith("output[0] ")
    assert Agreement(expected).difference(expected["sample"], expected).startswith("the output is")
