"""The whole reconstruction, on a small network: it helps, says where it stands, and goes on after a kill."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calib.errors import UserError
from smpq.reconstruction import reconstruct as module
from smpq.reconstruction import trained_block, walk
from smpq.reconstruction.blocks import find_blocks
from smpq.reconstruction.losses.base import LOSSES
from smpq.reconstruction.partial import PartialFile
from smpq.reconstruction.reconstruct import reconstruct
from smpq.reconstruction.settings import ReconstructionSettings
from tests.smpq.tunable import tunable

QUICK = ReconstructionSettings(iterations=60, samples=64, batch=16, step_rate=0.01)
SHORT = replace(QUICK, iterations=15)
"""For what does not depend on how near it comes."""


@pytest.fixture(scope="module")
def given():
    return tunable(rounding="nearest")


@pytest.fixture(scope="module")
def subject(given):
    return given.subject("w2a8", stem="w3a8", head="w4a4")


@pytest.mark.parametrize("loss", LOSSES)
def test_it_comes_nearer_to_the_float_network(given, subject, loss):
    told = []
    found = reconstruct(subject, given.batches, replace(QUICK, loss=loss), report=told.append)
    assert found.after.value > 0.7 * found.before.value, "minus the divergence: at least 30 % of it is gone"
    assert found.settings["reconstruction"] == loss
    assert [progress.block for progress in told if progress.cost] == list(range(told[0].blocks))
    assert told[-1].done == told[-1].iterations
    changed = {path for path, weight in found.weights.items() if not same(weight, subject.plan.weights[path])}
    assert changed == set(subject.plan.weights)


def same(first, second):
    return torch.equal(first.values, second.values) and torch.equal(first.scale, second.scale)


def test_activations_below_eight_bits_learn_their_steps(given, subject):
    found = reconstruct(subject, given.batches, QUICK)
    before = {(entry.tensor, entry.quantizer.bits): entry.quantizer for entry in subject.plan.tensors}
    moved = {key for key, quantizer in found.quantizers.items() if quantizer.scale != before[key].scale}
    assert moved
    assert all(bits < 8 for _, bits in moved)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_block_that_became_worse_goes_back_to_where_it_began(given, subject, loss):
    told = []
    harmful = replace(QUICK, loss=loss, iterations=3, step_rate=5.0, activation_rate=0.5, bias_rate=5.0)
    found = reconstruct(subject, given.batches, harmful, report=told.append)
    costs = [progress.cost for progress in told if progress.cost]
    assert all(before == after for before, after in costs)
    assert found.after == found.before
    assert all(same(weight, subject.plan.weights[path]) for path, weight in found.weights.items())
    grids = {(entry.tensor, entry.quantizer.bits): entry.quantizer for entry in subject.plan.tensors}
    assert all(grids[key] == quantizer for key, quantizer in found.quantizers.items())
    own = dict(subject.traced.module.named_parameters())
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.parameters.items())


def test_steps_of_activations_stay_where_they_are_not_learned(given, subject):
    found = reconstruct(subject, given.batches, replace(SHORT, activation_rate=0.0))
    grids = {(entry.tensor, entry.quantizer.bits): entry.quantizer for entry in subject.plan.tensors}
    assert all(grids[key] == quantizer for key, quantizer in found.quantizers.items())


def test_a_kill_costs_the_block_that_it_hit(given, subject, tmp_path, monkeypatch):
    undisturbed = reconstruct(subject, given.batches, SHORT)
    trained = module.train_block
    calls = []

    def dies_in_the_third(*args):
        calls.append(args[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trained(*args)

    monkeypatch.setattr(module, "train_block", dies_in_the_third)
    partial = tmp_path / PartialFile.NAME
    with pytest.raises(KeyboardInterrupt):
        reconstruct(subject, given.batches, SHORT, partial)
    resumed = reconstruct(subject, given.batches, SHORT, partial)
    assert calls[3] == calls[2], "it went on with the block that was not finished"
    assert len(calls) == len(undisturbed.history) + 1
    assert resumed.after == undisturbed.after
    for path, weight in undisturbed.weights.items():
        assert same(weight, resumed.weights[path])
    assert resumed.quantizers == undisturbed.quantizers
    for name, tensor in undisturbed.parameters.items():
        assert torch.equal(tensor, resumed.parameters[name])


@pytest.mark.parametrize("loss", LOSSES)
def test_what_does_not_fit_lies_in_files_and_changes_nothing(given, subject, monkeypatch, loss):
    settings = replace(SHORT, loss=loss, iterations=10)
    inside = reconstruct(subject, given.batches, settings)
    mapped = []
    in_a_file = walk._in_a_file
    monkeypatch.setattr(walk, "_in_a_file", lambda *like: mapped.append(in_a_file(*like)) or mapped[-1])
    outside = reconstruct(subject, given.batches, settings, memory_mb=1e-4)
    between = 2 * len(outside.history)  # what the float and the quantised blocks give
    assert len(mapped) > between if LOSSES[loss].times else 0 < len(mapped) <= between
    assert all(torch.isfinite(tensor).all() for tensor in mapped)
    for path, weight in inside.weights.items():
        assert same(weight, outside.weights[path])


def test_files_hold_tensors_in_their_order():
    for order in (torch.contiguous_format, torch.channels_last):
        like = torch.randn(2, 3, 4, 5).contiguous(memory_format=order)
        found = walk._in_a_file(like, 7)
        assert found.shape == (7, 3, 4, 5)
        assert found.is_contiguous(memory_format=order)
        found[2:4] = like
        assert torch.equal(found[2:4], like)
        assert found[0].abs().sum() == 0


def test_what_others_left_is_not_gone_on_with(given, subject, tmp_path):
    partial = tmp_path / PartialFile.NAME
    reconstruct(subject, given.batches, SHORT, partial)
    other = replace(SHORT, seed=1)
    assert reconstruct(subject, given.batches, other, partial).after == reconstruct(subject, given.batches, other).after


def test_the_share_of_float_inputs_falls_to_nothing(given, subject, monkeypatch):
    shares = []
    mixed = trained_block._mixed
    monkeypatch.setattr(trained_block, "_mixed", lambda *args: shares.append(args[2]) or mixed(*args))
    reconstruct(subject, given.batches, replace(SHORT, drop=0.5))
    one_block = shares[: SHORT.iterations]
    assert one_block[0] == 0.5
    assert np.allclose(np.diff(one_block), -0.5 / SHORT.iterations)
    assert len(shares) > SHORT.iterations
    assert shares[SHORT.iterations] == 0.5


def test_blocks_that_were_cut_elsewhere_begin_anew(given, subject, tmp_path, monkeypatch):
    partial = tmp_path / PartialFile.NAME
    reconstruct(subject, given.batches, SHORT, partial)

    def first_two_as_one(traced, units):
        one, two, *rest = find_blocks(traced, units)
        return (replace(two, start=one.start, units=one.units + two.units), *rest)

    monkeypatch.setattr(module, "find_blocks", first_two_as_one)
    told = []
    reconstruct(subject, given.batches, SHORT, partial, told.append)
    assert [progress.block for progress in told if progress.cost] == list(range(told[0].blocks))


def test_errors_say_what_to_do(given, subject):
    with pytest.raises(UserError, match="smaller --rounding-rate"):
        reconstruct(subject, given.batches, replace(QUICK, step_rate=1e8))
    with pytest.raises(UserError, match="nothing to reconstruct"):
        reconstruct(given.subject("fp16"), given.batches, QUICK)
    with pytest.raises(UserError, match="cannot be trained"):
        reconstruct(given.subject("fp8"), given.batches, QUICK)
