"""The loop with bundles that are carried to a device and back; a small network with layers of known cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from calib.errors import UserError
from calib.formats.format import FP32
from deploy.devices.bundle import RUNNER_FILE
from deploy.files.engine import LatencyFile
from deploy.latency.steps import StopReason
from deploy.runner.experiment import read_experiment, result_key
from deploy.stages.bundling import take_feedback, write_next_bundle
from deploy.stages.finetuning import version_of
from deploy.stages.policies import read_policy
from deploy.stages.reporting import write_report
from tests.commands import contents
from tests.deploy.board import FASTER, NO_FIGURES, SLOWER, Refuses, figures, nothing
from tests.deploy.stages.test_looping import looped, read
from tests.deploy.synthetic import policies

REFUSING = f"""
import sys
from pathlib import Path
sys.path.insert(0, {RUNNER_FILE!r})
from deploy.runner import bench, main
opened = bench.OPENERS["onnxruntime"]
def opener(model, *others):
    if model.stem == "{{broken}}":
        model = Path("broken.onnx")
        model.write_bytes(b"no model")
    return opened(model, *others)
bench.OPENERS["onnxruntime"] = opener
main.main([])
"""
"""The runner, on a device whose runtime takes one of the models for no model."""


HARDWARE = {"gpu": None, "jetson_release": None, "power_mode": None}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "bundle"


def asked(workspace) -> list[dict[str, str]]:
    return [entry["policy"]["policy"] for entry in read(workspace.run.file("bundle.json"))["candidates"].values()]


def named(policy: dict[str, str]) -> str:
    return ",".join(f"{layer}={chosen}" for layer, chosen in sorted(policy.items()))


def answered(
    workspace, directory: Path, costs: dict[str, float] = FASTER, refuses: Refuses = nothing, **changes
) -> Path:
    """Write what a device would send back."""
    experiment, known = read_experiment(directory), read(workspace.run.file("bundle.json"))["candidates"]
    results = []
    for candidate in experiment["candidates"]:
        about = {"key": result_key(experiment, candidate), "name": candidate["name"], "batch": 1}
        policy = known[candidate["name"]]["policy"]["policy"]
        integers = [layer for layer, chosen in policy.items() if chosen != "fp32"]
        results.append({**about, **figures(integers, costs, refuses)})
    record = {
        "schema": 4,
        "fingerprint": experiment["fingerprint"],
        "runtime": "onnxruntime",
        "versions": {},
        "machine": "a board",
    }
    file = directory / "measurements.json"
    file.write_text(json.dumps({**record, "hardware": HARDWARE, "results": results, **changes}))
    return file


def until_nothing_is_left(workspace, directory, budget, answer) -> tuple[dict, list[dict[str, str]]]:
    """Carry bundles to and fro; returns what the last feedback said, and every policy that was asked for."""
    everything = []
    for _ in range(8):
        write_next_bundle(workspace, budget, directory)
        everything += asked(workspace)
        record = take_feedback(workspace, answer())
        if not record.proposals:
            return record, everything
    pytest.fail("there was always something left to measure")


def test_bundles_until_nothing_is_left(workspace, directory):
    record, everything = until_nothing_is_left(
        workspace, directory, "latency=0.75x", lambda: answered(workspace, directory)
    )
    assert record.met
    assert record.stop_reason == "no other policy within the limit is likely to be better"
    assert len(everything) == len({str(policy) for policy in everything}), "nothing is asked for twice"
    assert len(looped(workspace)) == len(everything)

    def ratio(policy):
        return 1 + sum(FASTER[layer] for layer, chosen in policy.formats.items() if chosen != FP32)

    within = [policy for policy in policies(workspace.space) if ratio(policy) + 0.002 <= 0.75]
    chosen = read_policy(workspace)
    assert chosen in within
    assert record.ratio == pytest.approx(ratio(chosen))
    assert workspace.evaluator(chosen) == max(workspace.evaluator(policy) for policy in within)
    assert Path(record.model).is_file()
    latency = workspace.run.read(LatencyFile)
    assert (latency.policy, latency.machine) == (version_of(workspace.run, chosen), "a board")
    assert latency.measurement.ratio == pytest.approx(ratio(chosen))
    report = write_report(workspace.run, {})
    assert report.met, "the report says what the feedback has said"
    assert report.limits[0].interval == latency.measurement.ratio_interval
    with pytest.raises(UserError, match="no other engine needs to be measured: no other policy"):
        write_next_bundle(workspace, None, directory)


def test_the_runner_measures_and_one_engine_does_not_build(workspace, directory):
    broken: list[str] = []

    def carried() -> Path:
        if not broken:
            broken.extend(list(read(workspace.run.file("bundle.json"))["candidates"])[:1])
        refusing = REFUSING.format(broken=broken[0])
        subprocess.run([sys.executable, "-I", "-c", refusing], cwd=directory, check=True, capture_output=True)
        return directory / "measurements.json"

    write_next_bundle(workspace, "latency=0.9x", directory)
    (refused_policy, *_) = asked(workspace)
    record, everything = until_nothing_is_left(workspace, directory, None, carried)
    (refusal,) = workspace.observations.refusals()
    assert "Protobuf parsing failed" in refusal.reason
    assert refusal.blamed == ()
    assert {path: str(chosen) for path, chosen in refusal.policy.formats.items()} == refused_policy
    assert everything.count(refused_policy) == 1, "what does not build is not asked for again"
    steps = looped(workspace)
    assert [step.policy.policy for step in steps if step.refused] == [refused_policy]
    asked_for = Counter(named(policy) for policy in everything if policy != refused_policy)
    assert Counter(named(step.policy.policy) for step in steps if step.measured is not None) == asked_for
    assert max(asked_for.values()) <= 2, "a busy machine casts doubt on a measurement once"
    measured = {o.policy.key(): o.ratio for o in workspace.observations.engines()}
    assert len(measured) == len(asked_for)
    assert record.ratio == measured.get(read_policy(workspace).key(), 1.0)
    assert record.met is (record.ratio <= 0.9)


@pytest.mark.parametrize(
    "refused",
    [
        ("no kernel for this", ["second/weight/DQ"]),
        ("Error in node 'second/weight/DQ': no kernel", []),
        ("no kernel [second, x]", []),
    ],
)
def test_formats_that_the_runtime_blames_are_not_asked_for_again(workspace, directory, refused):
    def refuses(integers):
        return refused if "second" in integers else None

    write_next_bundle(workspace, "latency=0.5x", directory)
    assert any(policy["second"] == "w8a8" for policy in asked(workspace))
    record = take_feedback(workspace, answered(workspace, directory, refuses=refuses))
    assert read(workspace.run.file("observations.json"))["machines"]["a board"]["refusals"][0]["blamed"] == [
        ["second", "w8a8"]
    ]
    while record.proposals:
        write_next_bundle(workspace, None, directory)
        assert all(policy["second"] == "fp32" for policy in asked(workspace))
        record = take_feedback(workspace, answered(workspace, directory, refuses=refuses))
    assert record.met is False
    assert record.stop_reason == StopReason.OUT_OF_REACH
    assert read_policy(workspace)["second"] == FP32


def test_a_float_engine_that_nothing_beats_is_kept(workspace, directory):
    record, _ = until_nothing_is_left(
        workspace, directory, "latency=0.9x", lambda: answered(workspace, directory, SLOWER)
    )
    assert (record.met, record.ratio) == (False, 1.0)
    assert set(read_policy(workspace).formats.values()) == {FP32}


def test_a_budget_in_milliseconds_needs_the_float_engines(workspace, directory):
    with pytest.raises(
        UserError, match=r"latency=1\.6ms is in milliseconds, .* are not known yet: give a share of them"
    ):
        write_next_bundle(workspace, "latency=1.6ms", directory)
    write_next_bundle(workspace, "latency=0.9x", directory)
    take_feedback(workspace, answered(workspace, directory))
    assert read(workspace.run.file("observations.json"))["machines"]["a board"]["float_ms"] == 2.0
    until_nothing_is_left(workspace, directory, "latency=1.6ms", lambda: answered(workspace, directory))
    with pytest.raises(UserError, match="no other engine needs to be measured: no other policy within the limit"):
        write_next_bundle(workspace, "latency=1.6ms", directory)


def test_what_is_no_answer_to_the_last_bundle_changes_nothing(workspace, directory):
    with pytest.raises(UserError, match=r"bundle\.json is missing: make it with smpq bundle"):
        take_feedback(workspace, directory / "measurements.json")
    with pytest.raises(UserError, match="the first bundle of a run needs a budget with a latency: give --budget"):
        write_next_bundle(workspace, None, directory)
    write_next_bundle(workspace, "latency=0.75x", directory)
    before = contents(workspace.run.path)
    file = directory / "measurements.json"
    with pytest.raises(UserError, match=r"is missing: copy measurements\.json back"):
        take_feedback(workspace, file)
    answered(workspace, directory)
    results = read(file)["results"]
    for changes, message in (
        ({"fingerprint": "f" * 64}, "measured with other models or data"),
        (
            {"results": [{**results[0], "ratio": "fast"}]},
            r"expected `float.*`, got `str` - at `\$\.results\[0\]\.ratio`",
        ),
        (
            {"results": [{**results[0], "name": "0123456789abcdef"}]},
            "0123456789abcdef contradicts .* its key is that of the model",
        ),
        (
            {"results": [{**results[0], "key": "0123456789abcdef", "name": "0123456789abcdef"}]},
            "is not in the last bundle",
        ),
        ({"schema": 7}, "schema 7"),
        ({"results": [{**results[0], "ratio": -1}]}, r"at `\$\.results\[0\]\.ratio`"),
        (
            {"results": [{**results[0], "ratio_interval": [2.6, 0.4]}]},
            "the interval of its ratio is 2.6 to 0.4, and the ratio is",
        ),
        ({"results": [results[0], results[0]]}, "it comes twice"),
        ({"results": [{**results[0], "batch": 2}]}, "its batch size is 2, and 1 was asked for"),
        ({"results": [{**results[0], "key": "0" * 16}]}, "its key is 0000000000000000"),
        ({"runtime": "tensorrt"}, "measured with tensorrt, and onnxruntime was asked for"),
        (
            {"results": [results[0], failure(results[1], "transient")]},
            "failed over the engine .*, for the moment .out of memory",
        ),
        (
            {"results": [results[0], failure(results[1], "internal")]},
            "was not measured .out of memory.: please report this",
        ),
    ):
        answered(workspace, directory, **changes)
        with pytest.raises(UserError, match=message):
            take_feedback(workspace, file)
    file.write_text(file.read_text()[:200])
    with pytest.raises(UserError, match="is not valid JSON"):
        take_feedback(workspace, file)
    assert contents(workspace.run.path) == before
    name = "0" * 16
    workspace.run.file("bundle.json").write_text(
        json.dumps({"schema": 1, "budget": "latency=0.75x", "candidates": {name: {}}})
    )
    with pytest.raises(
        UserError,
        match=rf'bundle\.json is damaged: object missing required field `label` - at `\$\.candidates\["{name}"\]`',
    ):
        take_feedback(workspace, answered_file(file, results, workspace))


def failure(result: dict, cause: str) -> dict:
    none = {name: None for name, value in result.items() if name in NO_FIGURES}
    return {**result, **none, "rounds_ms": [], "float_rounds_ms": [], "failed": "out of memory", "cause": cause}


def answered_file(file: Path, results: list, workspace) -> Path:
    record = {
        "schema": 4,
        "fingerprint": workspace.fingerprint,
        "runtime": "onnxruntime",
        "versions": {},
        "machine": "a board",
    }
    file.write_text(json.dumps({**record, "hardware": HARDWARE, "results": results}))
    return file


def test_a_directory_that_holds_something_else(workspace, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        with pytest.raises(UserError, match="holds something else: name a new directory"):
            write_next_bundle(workspace, "latency=0.75x", tmp_path / place)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="the loop needs a latency budget"):
        write_next_bundle(workspace, "size=0.5x", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_for_measurements_that_were_not_fed_back_can_be_typed(workspace, tmp_path):
    directory = tmp_path / "größe of it"
    write_next_bundle(workspace, "latency=0.75x", directory)
    answered(workspace, directory)
    with pytest.raises(UserError, match=r"use smpq feedback \S+ '.*/größe of it/measurements.json' first"):
        write_next_bundle(workspace, None, directory)
