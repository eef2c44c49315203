"""Legitimate networks that are odd become the engine of their module; what no engine can be is refused with one
message.
"""

import json

import pytest

from tests.commands import assert_matches, done, refused
from tests.odd_task import ODD

RUN = ("run", "--task", "tests.odd_task:task", "--evaluations", "6", "--samples", "8", "--effort", "fast")
TARGETS = {"ort-cpu": "size=0.7x", "simulate": "avg_bits=8"}


def arguments(out, target="ort-cpu", batch=8):
    return (*RUN, "--target", target, "--budget", TARGETS[target], "--batch", batch, "--out", out, "--quiet")


BATCHES = {
    "ZeroDimensional": 1, "WithNone": 8, "OfTheBatch": 8, "InputChanged": 8, "InputReturned": 8, "BufferCounts": 1,
    "NeedsGradient": 8, "TwiceOnOneInput": 8, "Named": 8, "OneSample": 1, "EightSamples": 8, "DeadChannels": 8,
    "TinyNumbers": 1, "EmptyModel": 8, "OtherForOne": 8, "UpToFour": 8,
}  # fmt: skip
SIMULATED = ("WithNone", "InputChanged", "OneSample", "EightSamples", "DeadChannels")


@pytest.mark.parametrize(
    ("network", "target"), [*((name, "ort-cpu") for name in BATCHES), *((name, "simulate") for name in SIMULATED)]
)
def test_an_odd_network_becomes_its_own_engine(tmp_path, monkeypatch, network, target):
    monkeypatch.setenv(ODD, network)
    done(*arguments(tmp_path / "run", target, BATCHES[network]))
    record = json.loads((tmp_path / "run" / "verify.json").read_text())
    assert record["lost_at"] in (None, "fake_quant", "engine")
    given = record["stages"]["eager"]
    low, high = given["interval"]
    for name, stage in record["stages"].items():
        assert stage["not_run"] is None
        allowed = 1e-4 if name == "float" else 0.1
        assert abs(stage["mean"] - given["mean"]) < allowed * (high - low) + 1e-6, name


@pytest.mark.parametrize(
    ("network", "batch", "message"),
    [
        (
            "OtherForOne",
            1,
            (
                r"does not compute what the model does on one sample: output differs .* "
                r"must not depend on the number of samples"
            ),
        ),
        (
            "UpToFour",
            1,
            r"can only be traced for one number of samples, calibration\(\) has batches of 8, .* 1: write --batch 8",
        ),
        ("EightSamples", 1, "write --batch 8"),
        ("Counts", 8, "does not compute what the model does"),
        ("BufferUsed", 8, r"changes the buffer 'count', and the output depends on it"),
        ("NormInTraining", 8, "the BatchNorm in 'norm' normalises with the statistics of each batch"),
        ("DropInTraining", 8, r"draws random numbers \(dropout in 'drop'\)"),
        ("Quoted", 8, "module name .* rename it"),
        ("Keyword", 8, "module name 'more.class'.* rename it"),
        (
            "OneSampleOfEight",
            8,
            r"fails on calibration batch 0 \(8 samples\): AssertionError.* It runs with one sample: .* --batch 1",
        ),
        ("ReturnsANumber", 8, "returns a value of type int beside tensors"),
        ("ReturnsTheSize", 8, "returns a value of type int beside tensors"),
        ("ReturnsAnAnswer", 8, "returns a value of type Answer: an engine gives tensors only"),
        ("SkippedOnly", 8, r"no layer that can be quantised .*\. first \(matmul\): a product that no linear layer"),
        ("ReturnsComplex", 8, "returns complex numbers"),
        ("Branches", 8, "cannot be traced by torch.export"),
        ("Squeezed", 8, "torch's exporter cannot express this model"),
        ("Lazy", 8, "'layer.weight' of the model has no shape yet"),
    ],
)
def test_what_cannot_be_an_engine_is_refused_with_one_message(
    tmp_path, monkeypatch, capfd, recwarn, network, batch, message
):
    monkeypatch.setenv(ODD, network)
    found = refused(*arguments(tmp_path / "run", batch=batch))
    assert_matches(message, found)
    assert not (tmp_path / "run" / "scores.json").exists(), "it is refused before the search"
    assert capfd.readouterr() == ("", "")
    recwarn.clear()  # torch says that lazy modules are young
