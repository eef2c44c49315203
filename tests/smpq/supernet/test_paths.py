"""One operation of every row alone: as training draws them, and as policies are judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calib.errors import UserError
from calib.formats.format import FP32, Format
from smpq.problem.policy import Policy
from smpq.supernet import paths
from smpq.supernet.paths import PathValue, draw_path, leave_path, take_path
from smpq.supernet.settings import SupernetSettings
from smpq.supernet.state import SupernetState
from smpq.supernet.training import train
from tests.smpq.supernets import Task, batch_of, supernet

SETTINGS = SupernetSettings(epochs=2, steps=4, paths=True, distillation=1.0)


@pytest.fixture(scope="module")
def trained():
    net = supernet()
    return net, train(net, Task().calibration(), SETTINGS)


def policy(net, text):
    return net.space.uniform(Format.from_text(text))


def test_a_path_is_what_shares_of_1_give():
    net, batch = supernet(), batch_of(5)
    for text in ("w2a8", "w4a4"):
        take_path(net, policy(net, text))
        found = net.graph.run(batch.inputs)
        leave_path(net)
        with torch.no_grad():
            for key, row in net.rows.items():
                wanted = [operation.name in text for operation in row]
                net.choices[key].alpha.copy_(torch.tensor(wanted) * 200.0)
        assert torch.allclose(found, net.graph.run(batch.inputs), atol=1e-5)


@pytest.mark.parametrize("chosen", [FP32, Format.from_text("fp16")])
def test_a_layer_in_a_float_format_is_float(chosen):
    """Whichever is the reference of the target, also where no layer is offered it."""
    net, batch = supernet(), batch_of(5)
    take_path(net, Policy({group.name: chosen for group in net.space.groups}))
    assert torch.allclose(net.graph.run(batch.inputs), net.graph.reference(batch.inputs), atol=1e-5)
    only_head = Policy({group.name: FP32 for group in net.space.groups} | {"head": Format.from_text("w2a4")})
    take_path(net, only_head)
    assert not torch.allclose(net.graph.run(batch.inputs), net.graph.reference(batch.inputs), atol=1e-2)


def test_every_operation_is_drawn_as_often():
    net = supernet()
    drawn = {key: np.zeros(len(row)) for key, row in net.rows.items()}
    for step in range(400):
        draw_path(net, (0, step))
        for key, counts in drawn.items():
            counts[net.choices[key].chosen] += 1
    for counts in drawn.values():
        assert (abs(counts - 200) < 50).all()  # five standard deviations
    chosen = [choice.chosen for choice in net.choices.values()]
    draw_path(net, (0, 399))
    assert [choice.chosen for choice in net.choices.values()] == chosen


def test_training_moves_the_steps_of_all_operations_and_no_alpha(trained):
    net, state = trained
    fresh = supernet()
    assert all(torch.equal(one, other) for one, other in zip(net.alphas, fresh.alphas, strict=True))
    assert all(not torch.equal(one, other) for one, other in zip(net.steps(), fresh.steps(), strict=True))
    assert all(choice.chosen is None for choice in net.choices.values())
    assert not any(found.updates for found in state.contributions.values())


def test_a_killed_training_goes_on_as_if_nothing_had_been(trained, tmp_path):
    class KilledError(Exception):
        pass

    def keep(state):
        state.save(tmp_path / "supernet.safetensors")
        raise KilledError

    with pytest.raises(KilledError):
        train(supernet(), Task().calibration(), SETTINGS, keep=keep)
    net = supernet()
    state = train(net, Task().calibration(), SETTINGS, SupernetState.load(tmp_path / "supernet.safetensors", net))
    assert state.tensors.keys() == trained[1].tensors.keys()
    assert all(torch.equal(tensor, trained[1].tensors[name]) for name, tensor in state.tensors.items())


def test_policies_are_judged_by_the_statistics_of_the_batch(trained):
    net, _ = trained
    before = {name: tensor.clone() for name, tensor in net.graph.state_dict().items()}
    with torch.no_grad():
        for name, tensor in net.graph.state_dict().items():
            if name.endswith("running_mean"):
                tensor.add_(100.0)  # would ruin every policy
    value = PathValue(net, Task().calibration())
    few, many = (value([policy(net, text)]) for text in ("w2a4", "w4a8"))
    ((_, few),), ((_, many),) = list(few), list(many)
    assert few < many < 0
    assert many > -1
    after = net.graph.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "running_mean" not in name)
    assert not net.graph.training
    assert all(choice.chosen is None for choice in net.choices.values())


def test_values_are_in_the_order_asked_for_and_other_weights_have_another_identity(trained):
    net, _ = trained
    policies = [policy(net, text) for text in ("w4a8", "w2a4", "w4a8")]
    for name in ("kl", "loss", "metric"):
        value = PathValue(net, Task().calibration(), name)
        found = [each for _, each in value(policies)]
        assert found[0] == found[2] != found[1]
    assert PathValue(supernet(), Task().calibration()).identity != PathValue(net, Task().calibration()).identity


def test_what_the_float_model_gives_is_kept_within_a_limit_and_for_the_divergence_alone(trained, monkeypatch):
    net, policies = trained[0], [policy(trained[0], "w2a8")]
    wanted = list(PathValue(net, Task().calibration())(policies))
    monkeypatch.setattr(paths, "_KEPT_BYTES", 0)
    value = PathValue(net, Task().calibration())
    assert list(value(policies)) == wanted
    assert not value._float_outputs._kept
    monkeypatch.setattr(net.graph, "reference", lambda _: pytest.fail("there is nothing to compare with"))
    assert len(list(PathValue(net, Task().calibration(), "loss")(policies))) == 1


def test_a_batch_of_one_sample_is_refused(trained):
    one = batch_of(1, 1)
    with pytest.raises(UserError, match="two samples"):
        PathValue(trained[0], [*Task().calibration(), one])


def test_paths_and_mixture_do_not_go_on_from_each_other(trained):
    with pytest.raises(UserError, match="paths"):
        train(supernet(), Task().calibration(), replace(SETTINGS, paths=False), trained[1])
