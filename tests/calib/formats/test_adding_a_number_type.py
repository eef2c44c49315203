"""One file with one decorator is a number type everywhere, or a rounding; and nothing outside asks which one it is."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import onnx
import pytest

from calib.formats.format import Format
from calib.formats.number_type import NUMBER_TYPES, number_type
from calib.rounding import ROUNDINGS
from deploy.targets.target import capability, target_from_name
from tests.commands import done, refused

TASK = ("--task", "tests.tiny_task:task", "--evaluations", "12", "--samples", "16", "--effort", "fast", "--quiet")
MODULE = "tests.calib.formats.thrown_away"


@pytest.fixture
def added():
    yield importlib.import_module(MODULE)
    NUMBER_TYPES.pop("pow4", None)
    ROUNDINGS.pop("down", None)
    del sys.modules[MODULE]


def test_they_do_the_whole_job(tmp_path, added):
    run = tmp_path / "run"
    formats = "wpow4a16,wpow4apow4,fp8,wfp8a16,w1a2"
    command = ("run", *TASK, "--target", "simulate", "--formats", formats, "--rounding", "down", "--out", run)
    done(*command, "--budget", "avg_bits=5")
    report = json.loads((run / "report.json").read_text())
    assert report["met"]
    offered = json.loads((run / "space.json").read_text())["groups"]
    assert {text for group in offered.values() for text in group["formats"]} == set(formats.split(","))
    assert set(added.calls) == {"pow4", "fp8", "1"}
    # an edited policy is lowered: every layer in the new type, and the weights are powers of two
    policy = json.loads((run / "policy.json").read_text())
    policy["policy"] = dict.fromkeys(policy["policy"], "wpow4apow4")
    (run / "policy.json").write_text(json.dumps(policy))
    done("export", run, "--quiet")
    graph = onnx.load(str(run / "model.simulate.onnx")).graph
    weights = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name.endswith("/weight")]
    assert len(weights) == 3
    assert all(set(np.unique(np.abs(weight))) <= {0, 1, 2, 4, 8, 16, 32, 64} for weight in weights)


@pytest.mark.usefixtures("added")
def test_messages_list_them():
    message = refused("run", *TASK, "--formats", "w9a8", "--budget", "size=0.9x", "--out", "nowhere")
    assert "activations 2, 3, 4, 5, 6, 7, 8, fp8 or pow4" in message
    message = refused("run", *TASK, "--rounding", "up", "--budget", "size=0.9x", "--out", "nowhere")
    assert "--rounding must be one of gptq, nearest, descent, slim, down, not 'up'" in message


@pytest.mark.usefixtures("added")
def test_only_simulate_takes_a_type_that_no_table_names():
    chosen = Format.from_text("wpow4a8")
    assert capability(target_from_name("simulate"), "linear", chosen, 64).status == "native"
    assert capability(target_from_name("ort-cpu"), "linear", chosen, 64).status == "refused"


@pytest.mark.parametrize("name", ["", "12", "a", "8b", "w8a8", "fp-8"])
def test_a_name_that_formats_could_not_tell_apart_is_a_bug(name):
    with pytest.raises(ValueError, match="is no name of a number type"):
        number_type(name)(type(NUMBER_TYPES["8"]))
