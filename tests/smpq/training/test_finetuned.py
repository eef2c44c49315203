import copy
import dataclasses
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from calib.errors import UserError
from calib.formats.format import Format
from calib.formats.integers import integer
from calib.network.graph import TracedModel
from smpq.training.finetune import finetune
from smpq.training.finetuned import FineTunedWeights, policy_of_file
from smpq.training.settings import FineTuneSettings
from tests.limited import mutated, read_within_limits
from tests.smpq.tunable import tunable


@pytest.fixture(scope="module")
def given():
    return tunable()


@pytest.fixture(scope="module")
def result(given):
    return finetune(
        given.subject("w4a4", stem="w3a8", head="w4a16b2", plain="fp32"), given.batches, FineTuneSettings(steps=2)
    )


def test_a_file_gives_back_what_was_saved(result, tmp_path):
    path = tmp_path / "finetuned.safetensors"
    result.save(path)
    loaded = FineTunedWeights.load(path)
    for field in dataclasses.fields(FineTunedWeights):
        saved, found = getattr(result, field.name), getattr(loaded, field.name)
        if field.name == "parameters":
            assert saved.keys() == found.keys()
            assert all(torch.equal(saved[name], found[name]) for name in saved)
        elif field.name == "weights":
            assert saved.keys() == found.keys() == {"stem", "deep", "hidden", "repeated", "head"}
            for name, weight in saved.items():
                assert (weight.bits, weight.block) == (found[name].bits, found[name].block)
                assert torch.equal(weight.values, found[name].values)
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


class Product(nn.Module):
    """Its parameter is stored as `[in, out]`."""

    def __init__(self):
        super().__init__()
        self.product = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return x @ self.product


def test_a_weight_goes_back_to_a_parameter_of_another_layout(result):
    traced = TracedModel(Product().eval(), (torch.randn(2, 4),))
    tuned = dataclasses.replace(result, parameters={"product": torch.randn(3, 4)})
    again = tuned.traced(traced)
    assert torch.equal(again.module.product, tuned.parameters["product"].T)
    assert torch.equal(again.state["p_product"], tuned.parameters["product"])
    wrong = dataclasses.replace(result, parameters={"product": torch.randn(4, 3)})
    with pytest.raises(UserError, match="does not fit"):
        wrong.traced(traced)


def test_only_what_was_trained_can_be_asked_for(given, result):
    calibration = result.calibration(given.fake.calibration)
    by_path = {unit.path: unit for unit in given.units}
    assert calibration.weight(by_path["stem"], Format.from_text("w3a8")) is result.weights["stem"]
    with pytest.raises(UserError, match="stem was not fine-tuned as w2a8: fine-tune again, or delete"):
        calibration.weight(by_path["stem"], Format.from_text("w2a8"))
    with pytest.raises(UserError, match="plain was not fine-tuned as w4a8"):
        calibration.weight(by_path["plain"], Format.from_text("w4a8"))
    tensor, bits = next(iter(result.quantizers))
    assert calibration.quantizer(tensor, integer(bits), "affine") is result.quantizers[tensor, bits]
    with pytest.raises(UserError, match=rf"{tensor} was not fine-tuned at {bits} bits \(symmetric\)"):
        calibration.quantizer(tensor, integer(bits), "symmetric")
    with pytest.raises(UserError, match="at 7 bits"):
        calibration.quantizer(tensor, integer(7), "affine")


def test_parameters_of_another_model(given, result):
    for parameters in ({"other.weight": torch.zeros(2)}, {"head.weight": torch.zeros(2)}):
        with pytest.raises(UserError, match="does not fit the model: fine-tune again"):
            dataclasses.replace(result, parameters=parameters).traced(given.traced)


def test_a_missing_file(tmp_path):
    for read in (FineTunedWeights.load, policy_of_file):
        with pytest.raises(UserError, match="missing: make it with smpq finetune"):
            read(tmp_path / "finetuned.safetensors")


def written(path):
    """The record and the tensors of a file, to be changed and written again."""
    with safe_open(path, framework="pt") as file:
        return (
            json.loads(file.metadata()["smpq"]),
            {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
        )


def set_at(value, *keys):
    """Return a change of a record: what stands at `keys` becomes `value`."""

    def change(record, _):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def tensor_at(name, change):
    """Return a change of one tensor."""

    def apply(_, tensors):
        tensors[name] = change(tensors[name])

    return apply


def filled(value, *place):
    def change(tensor):
        tensor[place] = value
        return tensor

    return change


FORGERIES = {
    "integers of 100 in 3 bits": (
        tensor_at("integers/stem", filled(100, 0, 0, 0, 0)),
        "'stem' of 3 bits has integers outside of -4 to 3",
    ),
    "integers below": (
        tensor_at("integers/head", filled(-9, 0, 0)),
        "'head' of 4 bits has integers outside of -8 to 7",
    ),
    "float integers": (tensor_at("integers/stem", lambda t: t.float()), "'stem' is no int8"),
    "flat integers": (tensor_at("integers/stem", lambda t: t.flatten()), "'stem' is no int8"),
    "negative step": (tensor_at("scale/stem", filled(-0.1, 0)), "steps of 'stem' are not all above zero"),
    "step of zero": (tensor_at("scale/stem", filled(0.0, 0)), "steps of 'stem' are not all above zero"),
    "step is NaN": (tensor_at("scale/stem", filled(float("nan"), 0)), "'scale/stem' holds a value that is not finite"),
    "step is infinite": (
        tensor_at("scale/stem", filled(float("inf"), 0)),
        "'scale/stem' holds a value that is not finite",
    ),
    "steps are double": (tensor_at("scale/stem", lambda t: t.double()), "steps of 'stem'"),
    "one step too many": (
        tensor_at("scale/stem", lambda t: torch.cat([t, t[:1]])),
        r"steps of 'stem' have shape \[7\], expected \[6\]",
    ),
    "other blocks": (set_at(4, "weights", "head", "block"), "steps of 'head'"),
    "odd blocks": (set_at(3, "weights", "head", "block"), "steps of 'head'"),
    "blocks of none": (set_at(1, "weights", "head", "block"), "expected `int` >= 2"),
    "16 bits": (set_at(16, "weights", "stem", "bits"), "expected `int` <= 8"),
    "no bit": (set_at(0, "weights", "stem", "bits"), "expected `int` >= 1"),
    "bits as text": (set_at("3", "weights", "stem", "bits"), "expected `int`, got `str`"),
    "unknown unit": (set_at({"bits": 8, "block": None}, "weights", "other"), "'integers/other' is missing"),
    "no such part": (
        lambda _, tensors: tensors.update(extra=torch.zeros(1)),
        "'extra' is missing, or does not belong there",
    ),
    "no integers": (lambda _, tensors: tensors.pop("integers/stem"), "'integers/stem' is missing"),
    "parameter is NaN": (tensor_at("parameter/head.weight", filled(float("nan"), 0, 0)), "not finite"),
    "parameter in half precision": (
        tensor_at("parameter/head.weight", lambda t: t.half()),
        "'head.weight' is torch.float16",
    ),
    "grid step of zero": (set_at(0.0, "quantizers", 0, "scale"), "quantizers"),
    "negative grid step": (set_at(-1.0, "quantizers", 0, "scale"), "quantizers"),
    "grid step too large": (set_at(1e39, "quantizers", 0, "scale"), "quantizers"),
    "grid step is infinite": (set_at(float("inf"), "quantizers", 0, "scale"), "not valid JSON"),
    "zero point above": (set_at(256, "quantizers", 0, "zero_point"), "zero point 256 of 8 bits, expected 0 to 255"),
    "zero point below": (set_at(-1, "quantizers", 0, "zero_point"), "zero point -1"),
    "zero point of signed": (set_at(True, "quantizers", 0, "signed"), "zero point 124 of 8 bits, expected 0 to 0"),
    "zero point is a fraction": (set_at(1.5, "quantizers", 0, "zero_point"), "expected `int`"),
    "grid of 9 bits": (set_at(9, "quantizers", 0, "bits"), "expected `int` <= 8"),
    "grid of no tensor": (lambda record, _: record["quantizers"][0].pop("tensor"), "tensor"),
    "two grids": (lambda record, _: record["quantizers"].append(record["quantizers"][0]), "two grids"),
    "value is NaN": (set_at(float("nan"), "before", "value"), "not valid JSON"),
    "more than is known": (set_at(1, "more"), "unknown field `more`"),
    "another version": (set_at(7, "schema"), "schema 7, this version of smpq reads schema 1"),
    "another ending": (set_at("middle", "kept"), "middle"),
    "negative seconds": (set_at(-1.0, "seconds"), "seconds"),
    "negative step number": (set_at(-1, "history", 0, "step"), "history"),
    "no policy": (lambda record, _: record.pop("policy"), "missing required field `policy`"),
    "a list": (set_at([], "weights"), "expected `object`, got `array`"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_no_training_makes_is_refused(result, tmp_path, name):
    path = tmp_path / "finetuned.safetensors"
    result.save(path)
    record, tensors = written(path)
    change, message = FORGERIES[name]
    change(record, tensors)
    save_file(tensors, path, {"smpq": json.dumps(record)})
    with pytest.raises(UserError, match=message) as caught:
        FineTunedWeights.load(path)
    assert str(path) in str(caught.value)
    assert "fine-tune again" in str(caught.value)


def without(result, name):
    return {key: tensor for key, tensor in result.parameters.items() if key != name}


MISFITS = {
    "a parameter is missing": (lambda r: {"parameters": without(r, "head.bias")}, "'head.bias' does not fit"),
    "an unknown parameter": (
        lambda r: {"parameters": {**r.parameters, "other": torch.ones(1)}},
        "'other' does not fit",
    ),
    "a parameter of another shape": (
        lambda r: {"parameters": {**r.parameters, "head.bias": torch.ones(1)}},
        "'head.bias' does not fit",
    ),
    "an unknown unit": (lambda r: {"weights": {**r.weights, "other": r.weights["head"]}}, "'other' does not fit"),
    "a weight of another shape": (
        lambda r: {"weights": {**r.weights, "stem": r.weights["head"]}},
        "'stem' does not fit",
    ),
    "an unknown tensor": (
        lambda r: {"quantizers": {("other", 8): next(iter(r.quantizers.values()))}},
        "no tensor 'other'",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_the_model_is_refused(given, result, tmp_path, name):
    result.check_fits(given.traced, given.units, tmp_path)
    change, message = MISFITS[name]
    wrong = dataclasses.replace(result, **change(copy.copy(result)))
    with pytest.raises(UserError, match=message):
        wrong.check_fits(given.traced, given.units, tmp_path)


def test_mutated_files_are_read_or_refused(warm, result, tmp_path):
    path = tmp_path / "finetuned.safetensors"
    result.save(path)
    content, generator, files = path.read_bytes(), random.Random(2), []
    for index in range(150):
        files.append(tmp_path / f"{index}.safetensors")
        files[-1].write_bytes(mutated(content, generator))
    said = read_within_limits("finetuned", *files, warm=warm)
    assert said.count("read") < len(files)
