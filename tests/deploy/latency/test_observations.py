"""What a run remembers of measured engines, and of those that did not build."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from calib.errors import UserError
from calib.formats.format import FP32, Format
from deploy.devices.base import Result
from deploy.latency.candidates import CANDIDATES
from deploy.latency.observations import blamed_formats, latency_model
from deploy.latency.observed import Refusal, observation_of
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
    task.run.file("observations.json").unlink(missing_ok=True)
    progress = Progress(Console(quiet=True))
    progress.warn = said.append
    return replace(task, progress=progress)


def measured(workspace, *integers, refused=None, **changes):
    policy = workspace.space.uniform(FP32)
    for name in integers:
        policy = policy.with_format(name, W8A8)
    about = {"key": "0" * 16, "name": lowered(workspace), "batch": 1}
    return policy, msgspec.convert({**about, **figures(integers, FASTER, lambda _: refused), **changes}, Result)


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
    verdicts = workspace.observations.keep([one, two], "a board")
    assert workspace.observations.engines() == workspace.observations.engines("a board") == verdicts
    assert [observation.ratio for observation in verdicts] == pytest.approx([0.9, 0.95])
    assert verdicts[0].standard_error == pytest.approx(math.hypot(0.002, 1.96 * 0.005 * 0.9) / 1.96), (
        "other sessions too"
    )
    assert workspace.observations.float_ms() == 3.0, "the median of 2 and 4"


def test_the_last_word_on_a_policy_counts(workspace):
    workspace.observations.keep([measured(workspace, "first"), measured(workspace, "second")], "a board")
    workspace.observations.keep([measured(workspace, "first", ratio=0.5)], "a board")
    assert [observation.ratio for observation in workspace.observations.engines()] == pytest.approx([0.7, 0.5])
    workspace.observations.keep([measured(workspace, "second", refused=("no kernel", ["second/weight/DQ"]))], "a board")
    assert [observation.ratio for observation in workspace.observations.engines()] == [0.5]
    policy = workspace.space.uniform(FP32).with_format("second", W8A8)
    assert workspace.observations.refusals() == [Refusal(policy, "no kernel", (("second", W8A8),))]
    assert workspace.observations.float_ms() == 2.0
    workspace.observations.keep([measured(workspace, "second")], "a board")
    assert workspace.observations.refusals() == []


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
    found = blamed_formats(workspace.space, *measured(workspace, "first", "second", refused=(reason, nodes)), NODES)
    assert found == tuple((name, W8A8) for name in blamed), "float layers are not"


def test_what_was_measured_elsewhere_is_not_taken(workspace, said):
    workspace.observations.keep([measured(workspace, "first")], "a board")
    assert workspace.observations.engines("another board") == []
    workspace.observations.keep([measured(workspace, "head")], "another board")
    assert len(workspace.observations.engines("a board")) == 1, "another machine's stay"
    assert workspace.observations.machines == ("a board", "another board")
    assert workspace.observations.engines() == workspace.observations.engines("another board"), (
        "the last one to measure"
    )
    assert said == []
    file = workspace.run.file("observations.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "f" * 64}))
    assert workspace.observations.engines() == []
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
    workspace.observations.keep(
        [measured(workspace, "first"), measured(workspace, "second", refused=("no", []))], "a board"
    )
    file = workspace.run.file("observations.json")
    record = json.loads(file.read_text())
    change(record["machines"]["a board"])
    file.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"observations\.json is damaged: .*a board.*: correct it, or delete it to make it again"
    ):
        workspace.observations.engines()


def test_a_model_needs_a_measurement(workspace, said):
    with pytest.raises(UserError, match="use smpq run, or smpq measure first"):
        latency_model(workspace.observations, workspace.edges, said.append)
    workspace.observations.keep([measured(workspace, "second")], "a board")
    predicted, error = latency_model(workspace.observations, workspace.edges, said.append).predict(
        measured(workspace, "second")[0]
    )
    assert predicted == pytest.approx(0.7, abs=3 * error)


def test_within_a_limit_by_the_loop_is_within_it_by_the_interval(task):
    """The end of the search looks at the interval itself: a lopsided one must not send it back for nothing."""
    plain = {"key": "0" * 16, "name": "1" * 16, "batch": 1, **figures(["first"], FASTER, lambda _: None)}
    made = msgspec.convert({**plain, "ratio_interval": [plain["ratio"] - 0.001, plain["ratio"] + 0.01]}, Result)
    observed = observation_of(task.space.uniform(W8A8), made)
    assert made.ratio_interval is not None
    assert observed.upper == pytest.approx(made.ratio_interval[1])
