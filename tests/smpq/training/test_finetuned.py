import dataclasses

import pytest
import torch

from calib.errors import UserError
from calib.formats import Format
from smpq.training.finetune import FineTuneSettings, finetune
from smpq.training.finetuned import FineTuned, policy_of_file
from tests.smpq.tunable import tunable


@pytest.fixture(scope="module")
def given():
    return tunable()


@pytest.fixture(scope="module")
def result(given):
    return finetune(given.subject("w4a4", stem="w3a8", head="w4a16b2", plain="fp32"), given.batches, FineTuneSettings(steps=2))


def test_a_file_gives_back_what_was_saved(result, tmp_path):
    path = tmp_path / "finetuned.safetensors"
    result.save(path)
    loaded = FineTuned.load(path)
    for field in dataclasses.fields(FineTuned):
        saved, found = getattr(result, field.name), getattr(loaded, field.name)
        if field.name == "parameters":
            assert saved.keys() == found.keys()
            assert all(torch.equal(saved[name], found[name]) for name in saved)
        elif field.name == "weights":
            assert saved.keys() == found.keys() == {"stem", "deep", "hidden", "repeated", "head"}
            for name, weight in saved.items():
                assert (weight.bits, weight.block) == (found[name].bits, found[name].block)
                assert torch.equal(weight.integers, found[name].integers)
                assert torch.equal(weight.scale, found[name].scale)
        elif field.name == "history":
            assert list(saved) == list(found)
        else:
            assert saved == found, field.name
    assert policy_of_file(path) == result.policy
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_model_with_its_parameters_has_the_same_graph(given, result):
    traced = result.traced(given.traced)
    assert list(traced.nodes) == list(given.traced.nodes)
    for node, name in traced.parameter_names.items():
        if name in result.parameters and traced.nodes[node].users:
            assert torch.equal(traced.state[node], result.parameters[name]), name


def test_only_what_was_trained_can_be_asked_for(given, result):
    calibration = result.calibration(given.fake.calibration)
    by_path = {unit.path: unit for unit in given.units}
    assert calibration.weight(by_path["stem"], Format.from_text("w3a8")) is result.weights["stem"]
    with pytest.raises(UserError, match="stem was not fine-tuned as w2a8: fine-tune again, or delete"):
        calibration.weight(by_path["stem"], Format.from_text("w2a8"))
    with pytest.raises(UserError, match="plain was not fine-tuned as w4a8"):
        calibration.weight(by_path["plain"], Format.from_text("w4a8"))
    tensor, bits = next(iter(result.quantizers))
    assert calibration.quantizer(tensor, bits, "affine") is result.quantizers[tensor, bits]
    with pytest.raises(UserError, match=rf"{tensor} was not fine-tuned at {bits} bits \(symmetric\)"):
        calibration.quantizer(tensor, bits, "symmetric")
    with pytest.raises(UserError, match="at 7 bits"):
        calibration.quantizer(tensor, 7, "affine")


def test_parameters_of_another_model(given, result):
    for parameters in ({"other.weight": torch.zeros(2)}, {"head.weight": torch.zeros(2)}):
        with pytest.raises(UserError, match="does not fit the model: fine-tune again"):
            dataclasses.replace(result, parameters=parameters).traced(given.traced)


def test_a_missing_file(tmp_path):
    for read in (FineTuned.load, policy_of_file):
        with pytest.raises(UserError, match="missing: make it with smpq finetune"):
            read(tmp_path / "finetuned.safetensors")
