"""What a run remembers of measured engines, and of those that did not build."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from calib.errors import UserError
from calib.formats.format import FP32, Format
from deploy.devices.base import Result
from deploy.latency.loop import Refusal
from deploy.latency.observations import (
    CANDIDATES,
    Measured,
    blamed_formats,
    keep_measured,
    known_float_ms,
    known_machines,
    latency_model,
    read_observations,
    read_refusals,
)
from deploy.run.settings import Settings
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from tests.deploy.board import FASTER, figures

W8A8 = Format.from_text("w8a8")
NODES = ("first", "first/weight/DQ", "second", "second/Qx", "second/weight/DQ", "head", "relu")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    settings = Settings("tests.tiny_task:task", formats="w8a8,fp32", samples=16)
    with open_run(
        tmp_path_factory.mktemp("observations") / "run", Progress(Console(quiet=True)), settings
    ) as workspace:
        yield workspace


@pytest.fixture
def said():
    return []


@pytest.fixture
def workspace(task, said):
    task.run.file("measurements.json").unlink(missing_ok=True)
    progress = Progress(Console(quiet=True))
    progress.warn = said.append
    return replace(task, progress=progress)


def measured(workspace, *integers, refused=None, **changes):
    policy = workspace.space.uniform(FP32)
    for name in integers:
        policy = policy.with_format(name, W8A8)
    about = {"key": "0" * 16, "name": lowered(workspace), "batch": 1}
    return Measured(
        policy, msgspec.convert({**about, **figures(integers, FASTER, lambda _: refused), **changes}, Result)
    )


def lowered(workspace) -> str:
    """Put a graph with the nodes of the quantised tiny network among the candidates; returns its name."""
    name = "abcdef0123456789"
    nodes = [helper.make_node("Identity", ["x"], [f"y{index}"], name=name) for index, name in enumerate(NODES)]
    graph = helper.make_graph(nodes, "nodes", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [])
    file = workspace.run.file(CANDIDATES) / f"{name}.onnx"
    file.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph), file)
    return name


def test_what_was_measured_is_read_back(workspace):
    one, two = measured(workspace, "first"), measured(workspace, "first", "head", float_ms=4.0)
    verdicts = keep_measured(workspace, [one, two], "a board")
    assert read_observations(workspace) == read_observations(workspace, "a board") == verdicts
    assert [observation.ratio for observation in verdicts] == pytest.approx([0.9, 0.95])
    assert verdicts[0].standard_error == pytest.approx(0.004 / (2 * 1.96))
    assert known_float_ms(workspace) == 3.0, "the median of 2 and 4"


def test_the_last_word_on_a_policy_counts(workspace):
    keep_measured(workspace, [measured(workspace, "first"), measured(workspace, "second")], "a board")
    keep_measured(workspace, [measured(workspace, "first", ratio=0.5)], "a board")
    assert [observation.ratio for observation in read_observations(workspace)] == pytest.approx([0.7, 0.5])
    keep_measured(workspace, [measured(workspace, "second", refused=("no kernel", ["second/weight/DQ"]))], "a board")
    assert [observation.ratio for observation in read_observations(workspace)] == [0.5]
    policy = workspace.space.uniform(FP32).with_format("second", W8A8)
    assert read_refusals(workspace) == [Refusal(policy, "no kernel", (("second", W8A8),))]
    assert known_float_ms(workspace) == 2.0
    keep_measured(workspace, [measured(workspace, "second")], "a board")
    assert read_refusals(workspace) == []


@pytest.mark.parametrize(
    ("reason", "nodes", "blamed"),
    [
        ("no kernel", [], []),
        ("no kernel", ["first/weight/DQ", "head"], ["first"]),
        ("Error at 'second/Qx' [second]: no kernel", [], ["second"]),
        ("{first,second}", ["second"], ["first", "second"]),
        ("firstly, the secondary", ["headless"], []),
        ("the head of the first tensor is lost", [], []),
        ("no kernel (first, second/Qx)", [], ["first", "second"]),
        ("Could not find any implementation for node first + relu.", [], ["first"]),
        ("(a second of the head)", ["second/nothing"], []),
    ],
)
def test_who_is_blamed(workspace, reason, nodes, blamed):
    found = blamed_formats(workspace.space, measured(workspace, "first", "second", refused=(reason, nodes)), NODES)
    assert found == tuple((name, W8A8) for name in blamed), "float layers are not"


def test_what_was_measured_elsewhere_is_not_taken(workspace, said):
    keep_measured(workspace, [measured(workspace, "first")], "a board")
    assert read_observations(workspace, "another board") == []
    keep_measured(workspace, [measured(workspace, "head")], "another board")
    assert len(read_observations(workspace, "a board")) == 1, "another machine's stay"
    assert known_machines(workspace) == ("a board", "another board")
    assert read_observations(workspace) == read_observations(workspace, "another board"), "the last one to measure"
    assert said == []
    file = workspace.run.file("measurements.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "f" * 64}))
    assert read_observations(workspace) == []
    assert "made with another model, other weights or data: measuring again" in said.pop()


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows["observations"][0].pop("ratio"),
        lambda rows: rows["observations"][0].update(ratio="fast"),
        lambda rows: rows.update(observations=[3]),
        lambda rows: rows["refusals"][0].pop("reason"),
        lambda rows: rows["refusals"][0].update(blamed=["second"]),
        lambda rows: rows["refusals"][0].update(blamed=7),
    ],
)
def test_a_damaged_file(workspace, change):
    keep_measured(
        workspace, [measured(workspace, "first"), measured(workspace, "second", refused=("no", []))], "a board"
    )
    file = workspace.run.file("measurements.json")
    record = json.loads(file.read_text())
    change(record["machines"]["a board"])
    file.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"measurements\.json is damaged: .*a board.*: correct it, or delete it to make it again"
    ):
        read_observations(workspace)


def test_a_model_needs_a_measurement(workspace):
    with pytest.raises(UserError, match="use smpq run, or smpq measure first"):
        latency_model(workspace)
    keep_measured(workspace, [measured(workspace, "second")], "a board")
    predicted, error = latency_model(workspace).predict(measured(workspace, "second").policy)
    assert predicted == pytest.approx(0.7, abs=3 * error)
