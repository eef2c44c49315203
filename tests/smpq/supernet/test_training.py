import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from calib.errors import UserError
from smpq.supernet.scores import shapley_scores, softmax_scores
from smpq.supernet.settings import GameSettings, SupernetSettings
from smpq.supernet.state import SupernetState
from smpq.supernet.training import train
from smpq.value.divergence import divergence
from tests.smpq.supernets import Task, Untrainable, supernet

SETTINGS = SupernetSettings(epochs=4, steps=3, walks=3, samples=32, gamma=0.0, game=GameSettings(("metric", "loss")))


def trained(settings=SETTINGS, state=None, keep=lambda _: None, net=None):
    net = net or supernet()
    return net, train(net, Task().calibration(), settings, state, keep)


@pytest.fixture(scope="module")
def whole():
    reports = []
    net = supernet()
    state = train(net, Task().calibration(), SETTINGS, report=reports.append)
    return net, state, reports


def same(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    for value, found in one.contributions.items():
        assert found.to_json() == other.contributions[value].to_json()


def test_gradients_that_the_caller_has_switched_off_are_on_while_it_trains():
    settings = dataclasses.replace(SETTINGS, epochs=1)
    with torch.no_grad():
        _, state = trained(settings)
    same(state, trained(settings)[1])


def test_values_are_estimated_in_the_second_half(whole):
    _, state, reports = whole
    assert [bool(report.estimates) for report in reports] == [False, False, True, True]
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4]
    found = state.contributions["loss"]
    assert found.updates == 2
    assert len(found.walks) == 6
    assert found.evaluations == 2 * (1 + 3 * 6)
    assert all(np.isfinite(contribution.score).all() for contribution in state.contributions.values())


def test_training_moves_weights_steps_and_alphas(whole):
    net, _, _ = whole
    fresh = supernet()
    for mine, theirs in (
        (net.alphas, fresh.alphas),
        (net.steps(), fresh.steps()),
        (net.graph.groups().weights, fresh.graph.groups().weights),
    ):
        assert any(not torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_the_same_seed_gives_the_same_policy(whole):
    _, state, _ = whole
    net, again = trained()
    same(state, again)
    for scores in (shapley_scores, softmax_scores):
        assert scores(net, again).values() == scores(net, state).values()
    _, other = trained(dataclasses.replace(SETTINGS, seed=1))
    assert other.history[0]["loss"] != state.history[0]["loss"]


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_killed_training_goes_on_as_if_nothing_had_been(whole, tmp_path, stopped_after):
    path = tmp_path / "supernet.safetensors"

    class KilledError(Exception):
        pass

    def keep(state):
        state.save(path)
        if len(state.history) == stopped_after:
            raise KilledError

    with pytest.raises(KilledError):
        trained(keep=keep)
    net = supernet()
    found = SupernetState.load(path, net)
    assert len(found.history) == stopped_after
    _, state = trained(state=found, net=net)
    same(state, whole[1])


def test_a_finished_training_is_not_repeated(whole, tmp_path):
    path = tmp_path / "supernet.safetensors"
    whole[1].save(path)
    net = supernet()
    _, state = trained(state=SupernetState.load(path, net), net=net)
    same(state, whole[1])


def test_a_state_of_something_else_is_refused(whole, tmp_path):
    path = tmp_path / "supernet.safetensors"
    whole[1].save(path)
    state = SupernetState.load(path, supernet())
    with pytest.raises(UserError, match="walks=3, now 4"):
        trained(dataclasses.replace(SETTINGS, walks=4), state)
    with pytest.raises(UserError, match="another model"):
        trained(state=state, net=supernet(fingerprint="other"))
    with pytest.raises(UserError, match="another space"):
        SupernetState.load(path, supernet("w2a8,w4a8"))
    with pytest.raises(UserError, match="is missing"):
        SupernetState.load(tmp_path / "none", supernet())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        SupernetState.load(path, supernet())


def rewritten(state, path, change):
    """Save a state with its record or its tensors changed."""
    state.save(path)
    with safe_open(path, framework="pt") as file:
        record, tensors = (
            json.loads(file.metadata()["smpq"]),
            {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
        )
    change(record, tensors)
    save_file(tensors, path, {"smpq": json.dumps(record)})


def filled(name, value):
    def change(_, tensors):
        tensors[name].view(-1)[0] = value

    return change


def cut(name):
    def change(_, tensors):
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    return change


STEP = "graph/_quantizers.0.candidates.0.step"
FORGERIES = {
    "a step is NaN": (filled(STEP, float("nan")), "not finite"),
    "a step is negative": (filled(STEP, -1.0), "is negative"),
    "a step is zero": (filled(STEP, 0.0), "is not above zero"),
    "a gain is negative": (filled("graph/_norms.p_stem_weight.weight", -1.0), "is not above zero"),
    "a variance is negative": (filled("graph/_norms.p_stem_weight.running_var", -1.0), "is negative"),
    "a second moment is negative": (filled("optimizer/alphas/0/exp_avg_sq", -1.0), "is negative"),
    "alpha is infinite": (filled("graph/_quantizers.0.choice.alpha", float("inf")), "not finite"),
    "momentum of another shape": (cut("optimizer/weights/3/momentum_buffer"), "does not fit the training"),
    "alpha of another shape": (cut("graph/_quantizers.0.choice.alpha"), "does not fit the model"),
    "no such optimiser": (
        lambda _, tensors: tensors.update({"optimizer/more": torch.ones(1)}),
        "does not belong there",
    ),
    "no such parameter": (
        lambda _, t: t.update({"optimizer/weights/99/momentum_buffer": torch.ones(1)}),
        "does not fit the training",
    ),
    "half of Adam": (lambda _, tensors: tensors.pop("optimizer/alphas/0/exp_avg"), "does not fit the training"),
    "a part is missing": (lambda _, tensors: tensors.pop(STEP), "does not fit the model"),
    "doubles": (lambda _, tensors: tensors.update({STEP: tensors[STEP].double()}), "does not fit the model"),
    "an epoch twice": (lambda record, _: record["history"].append(record["history"][-1]), "the epochs are not 1, 2, 3"),
    "no epoch": (lambda record, _: record["history"].clear(), "history"),
    "a loss is NaN": (lambda record, _: record["history"][0].update(loss=float("nan")), "not valid JSON"),
    "seconds are negative": (lambda record, _: record["history"][0]["seconds"].update(training=-1), "training"),
    "more walks than there are": (
        lambda record, _: record["contributions"]["loss"].update(walks=60),
        "number of walks",
    ),
    "walks that no update made": (
        lambda record, _: record["contributions"]["loss"].update(updates=0),
        "0 updates with 6 walks",
    ),
    "other operations": (lambda record, _: record["contributions"]["loss"]["operations"].pop(), "of another space"),
    "another version": (lambda record, _: record.update(schema=1), "schema 1, this version of smpq reads schema 2"),
    "an unknown field": (lambda record, _: record.update(more=1), "unknown field `more`"),
    "an unknown setting": (lambda record, _: record["settings"].update(more=1), "'more', which is not known"),
    "a missing setting": (lambda record, _: record["settings"].pop("gamma"), "gamma=None"),
    "values of another game": (
        lambda record, _: record["contributions"].update(kl=record["contributions"]["loss"]),
        "other values",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_no_training_makes_is_refused(whole, tmp_path, name):
    path = tmp_path / "supernet.safetensors"
    change, message = FORGERIES[name]
    rewritten(whole[1], path, change)
    net = supernet()
    with pytest.raises(UserError, match=message) as caught:
        trained(state=SupernetState.load(path, net), net=net)
    assert "supernet.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"epochs": "4"}, {"epochs": -1}, {"more": 1}, {"game": {}}, {"game": 3}, {"samples": 2.5}]
)
def test_settings_of_a_file_that_cannot_be(wrong):
    with pytest.raises(UserError):
        SupernetSettings.from_json({**SETTINGS.to_json(), **wrong})


def test_settings_read_back():
    settings = dataclasses.replace(SETTINGS, deviation=True, complexity=0.1)
    assert SupernetSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_the_complexity_term_lowers_the_bits():
    many = dataclasses.replace(SETTINGS, epochs=2, steps=4, alpha_learning_rate=0.2, complexity=10.0)
    net, state = trained(many)
    assert state.history[-1]["complexity"] < 18
    assert all(row[0] > 0.5 for row in net.shares().values())


def test_distillation_needs_no_more_than_the_float_model():
    class Padded(Task):
        def divergence(self, output, float_output, target):
            assert len(target) == len(output)
            return divergence(output, float_output)

    settings = dataclasses.replace(SETTINGS, epochs=1, distillation=1.0)
    losses = [
        train(supernet(task=task), Task().calibration(), settings).history[0]["loss"] for task in (Task(), Padded())
    ]
    assert np.isfinite(losses[0])
    assert losses[1] == losses[0], "its divergence is given the target"


def test_wrong_data_and_divergence():
    with pytest.raises(UserError, match="no training data"):
        train(supernet(task=Untrainable()), Task().calibration(), SETTINGS)
    with pytest.raises(UserError, match="4 batches, not 5"):
        trained(dataclasses.replace(SETTINGS, steps=5))
    with pytest.raises(UserError, match="diverged"):
        trained(dataclasses.replace(SETTINGS, steps=4, learning_rate=1e9))


def test_walks_that_cannot_be_cut_are_said_before_the_training():
    task = Task()
    task.metric = lambda output, target: -output.square().mean(1)
    task.training = lambda _: pytest.fail("it trains")
    with pytest.raises(UserError, match=r"the float model is -.* use smpq train-supernet with --gamma 0"):
        train(supernet(task=task), Task().calibration(), dataclasses.replace(SETTINGS, gamma=0.5))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: (output.detach() * 2).mean(1), r"loss\(\) has no gradient"),
        (lambda output, target: output.mean(), r"one value per sample, \[32\], not \[\]"),
        (lambda output, target: output[target[0, 0]], r"loss\(\) failed: IndexError"),
    ],
)
def test_wrong_losses(loss, message):
    task = Task()
    task.loss = loss
    with pytest.raises(UserError, match=message):
        train(supernet(task=task), Task().calibration(), SETTINGS)


def test_scores_of_formats_are_sums_of_operations(whole):
    net, state, _ = whole
    shapley, softmax = shapley_scores(net, state), softmax_scores(net, state)
    found = state.contributions["metric"]
    score = {
        (operation.group, operation.name): value for operation, value in zip(found.operations, found.score, strict=True)
    }
    chosen = net.space.formats["deep"][2]
    entry = shapley.entries["deep"][chosen]
    assert str(chosen) == "w2a8"
    assert entry.value == pytest.approx(score["deep", "w2"] + score["deep", "a8"])
    assert np.mean(entry.marginals) == pytest.approx(entry.value)
    assert shapley.permutations == entry.samples == 6
    updates = np.split(np.array(entry.marginals), 2)
    by_orders = np.sqrt(sum(len(walks) * walks.var(ddof=1) for walks in updates)) / 6
    own = [number for number, o in enumerate(found.operations) if o.group == "deep" and o.name in {"w2", "a8"}]
    by_samples = found.parts[:, own].sum(1).std(ddof=1) / np.sqrt(8)
    error = np.hypot(by_orders, by_samples)
    assert entry.standard_error == pytest.approx(error), "of the sum: the same walks, the same samples"
    assert softmax.entries["deep"][chosen].value == pytest.approx(
        net.shares()["deep", "weight"][0] + net.shares()["deep", "activation"][1]
    )
    assert softmax.entries["deep"][chosen].standard_error == 0
    assert shapley_scores(net, state, "loss").values() != shapley.values()
    with pytest.raises(UserError, match="no Shapley values by kl"):
        shapley_scores(net, state, "kl")
