"""Networks that no single graph can stand for, and those that only look so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.errors import UserError
from calib.network.batch_range import largest_batch
from calib.network.fold import Folded, trace_folded
from calib.network.graph import TracedModel


class Around(nn.Module):
    """A linear layer, and what a test does with its result."""

    def __init__(self, then):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros(1))
        self.then = then

    def forward(self, x):
        return self.then(self, self.layer(x))


def network(then):
    torch.manual_seed(0)
    return Around(then).eval()


def in_training(self, y):
    self.drop.training = True
    return self.drop(y)


RANDOM = {
    "dropout_left_in_training": in_training,
    "functional_dropout": lambda self, y: F.dropout(y),
    "channels": lambda self, y: F.dropout1d(y[:, None], 0.2)[:, 0],
    "alpha_dropout": lambda self, y: F.alpha_dropout(y, 0.2, training=True),
    "exponential_": lambda self, y: y + torch.empty_like(y).exponential_(),
    "normal_": lambda self, y: y + torch.empty_like(y).normal_(),
    "uniform_": lambda self, y: y + torch.empty_like(y).uniform_(),
    "gumbel": lambda self, y: F.gumbel_softmax(y),
    "rrelu": lambda self, y: F.rrelu(y, training=True),
    "attention_dropout": lambda self, y: F.scaled_dot_product_attention(
        y[:, None], y[:, None], y[:, None], dropout_p=0.1
    )[:, 0],
    "rand_like": lambda self, y: y + torch.rand_like(y),
    "randperm": lambda self, y: y[:, torch.randperm(4)],
    "under_no_grad": lambda self, y: y + torch.no_grad()(lambda: torch.randn(4))(),
}


@pytest.mark.parametrize("then", RANDOM.values(), ids=RANDOM)
def test_random_networks_are_refused(then):
    with pytest.raises(UserError, match="draws random numbers"):
        TracedModel(network(then), (torch.randn(2, 4),))


def test_the_message_names_the_operator_and_the_module():
    with pytest.raises(UserError, match=r"\(dropout in 'drop'\)"):
        TracedModel(network(in_training), (torch.randn(2, 4),))


QUIET = {
    "eval_dropout": lambda self, y: self.drop(y),
    "standardised_weight": lambda self, y: F.linear(
        y, F.batch_norm(self.layer.weight[None], None, None, training=True)[0]
    ),
    "dropout_of_nothing": lambda self, y: F.dropout(y, 0.0, training=True),
    "attention": lambda self, y: F.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])[:, 0],
    "eval_rrelu": lambda self, y: F.rrelu(y, training=False),
    "no_grad": lambda self, y: torch.no_grad()(lambda: self.layer(y))(),
}


@pytest.mark.parametrize("then", QUIET.values(), ids=QUIET)
def test_operators_that_could_draw_but_do_not_are_traced(then):
    model, x = network(then), torch.randn(3, 4)
    torch.testing.assert_close(TracedModel(model, (torch.randn(2, 4),)).run((x,)), model(x))


def norm_in_training(self, y):
    self.norm.train()
    return self.norm(y)


@pytest.mark.parametrize("then", [norm_in_training, lambda self, y: F.batch_norm(y, None, None, training=True)])
def test_statistics_of_the_batch_are_refused(then):
    with pytest.raises(UserError, match="statistics of each batch"):
        TracedModel(network(then), (torch.randn(2, 4),))


def test_the_message_names_the_norm():
    with pytest.raises(UserError, match="BatchNorm in 'norm'"):
        TracedModel(network(norm_in_training), (torch.randn(2, 4),))


@pytest.mark.parametrize(
    ("then", "sizes", "free"),
    [
        (lambda self, y: y if y.shape[0] <= 8 else 2 * y, (1, 8), True),
        (lambda self, y: y if y.shape[0] <= 8 else 2 * y, (1, 9), False),
        (lambda self, y: y if y.shape[0] % 2 == 0 else 2 * y, (2, 4), True),
        (lambda self, y: y if y.shape[0] % 2 == 0 else 2 * y, (1, 4), False),
        (lambda self, y: y.reshape(-1, 8).repeat(2, 1) if y.numel() % 8 == 0 else y, (1, 4), False),
        (lambda self, y: y, (1, 2, 1000), True),
    ],
)
def test_the_batch_is_free_only_where_the_trace_holds_for_what_will_run(then, sizes, free):
    assert TracedModel(network(then), (torch.randn(2, 4),), sizes).dynamic_batch is free


def test_the_largest_batch_is_known():
    limited = network(lambda self, y: y if y.shape[0] <= 8 else 2 * y)
    assert largest_batch(TracedModel(limited, (torch.randn(2, 4),)).program) == 8
    assert largest_batch(TracedModel(network(lambda self, y: y), (torch.randn(2, 4),)).program) is None
    sizes = TracedModel(limited, (torch.randn(2, 4),)).sizes
    sizes.check([torch.randn(8, 4)], "a batch")
    with pytest.raises(UserError, match="a batch has 9 samples, and the engine holds for at most 8 at once"):
        sizes.check([torch.randn(9, 4)], "a batch")


def counts(self, y):
    self.count += 1
    return y


def uses_the_count(self, y):
    self.count += 1
    return y + self.count


def changes_its_input(self, y):
    y.mul_(2)
    return y + 1


def test_a_counter_that_nothing_reads_is_left_out():
    model, x = network(counts), torch.randn(3, 4)
    traced = TracedModel(model, (torch.randn(2, 4),))
    assert torch.equal(traced.run((x,)), model(x))
    assert "b_count" not in {node.name for node in traced.output.all_input_nodes}


def test_an_output_that_depends_on_a_changed_buffer_is_refused():
    with pytest.raises(UserError, match="changes the buffer 'count'"):
        TracedModel(network(uses_the_count), (torch.randn(2, 4),))


def test_a_changed_input_is_computed_as_the_model_does():
    class Changes(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x + 1

    traced, x = TracedModel(Changes().eval(), (torch.randn(2, 4),)), torch.randn(3, 4)
    assert torch.equal(traced.run((x.clone(),)), Changes()(x.clone()))


def test_a_weight_that_was_computed_can_be_copied(recwarn):
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4)).eval()
    recwarn.clear()  # torch says that this weight norm is old
    x = torch.randn(3, 4)
    traced, folded = trace_folded(model, (torch.randn(2, 4),))
    assert folded == (Folded("1", "0"),)
    torch.testing.assert_close(traced.run((x,)), model(x))


def test_what_cannot_be_copied_is_refused():
    model = network(counts)
    model.source = (number for number in range(3))
    with pytest.raises(UserError, match="cannot be copied"):
        trace_folded(model, (torch.randn(2, 4),))


def test_without_folding_the_model_is_traced_once():
    model = network(lambda self, y: y)
    traced, folded = trace_folded(model, (torch.randn(2, 4),))
    assert folded == ()
    assert traced.module is not model
    assert all(parameter.requires_grad for parameter in model.parameters())
