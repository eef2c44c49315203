"""Files of a run that are damaged, edited, or not there yet: one message, exit code 2, and the run goes on."""

import json

import onnx
import pytest

from calib.network.fingerprint import Fingerprint
from deploy.lowering.onnx_files import sha256
from tests.commands import TINY, assert_matches, contents, copy_of, done, filled, refused

SOLVE = ("solve", "{run}", "--budget", "avg_bits=8")


@pytest.fixture
def run(good_run, tmp_path):
    return copy_of(good_run, tmp_path / "run")


# Files of a run that were cut off or edited: the message names the file, and doing what it says repairs the run.

BUILD, REPORT = ("build", "{run}"), ("report", "{run}")
FILES = [
    ("run.json", SOLVE, None),
    ("scores.json", SOLVE, "score"),
    ("policy.json", ("export", "{run}"), SOLVE),
    ("budget.json", REPORT, SOLVE),
    ("observations.json", ("measure", "{run}"), None),
    ("observations.json", ("solve", "{run}", "--budget", "latency=3x"), ("measure", "{run}")),
    ("build.json", ("measure", "{run}"), BUILD),
    ("export.json", BUILD, ("export", "{run}")),
    ("latency.json", REPORT, ("measure", "{run}")),
    ("verify.json", REPORT, ("verify", "{run}")),
    ("engine.json", ("verify", "{run}"), BUILD),
    ("engine.ort-cpu.onnx", ("verify", "{run}"), BUILD),
    ("model.float.onnx", ("export", "{run}"), None),
    ("model.ort-cpu.onnx", BUILD, ("export", "{run}")),
    ("model.ort-cpu.onnx", ("measure", "{run}"), ("export", "{run}")),
    ("model.ort-cpu.onnx", ("verify", "{run}"), ("export", "{run}")),
]


@pytest.mark.parametrize(("name", "command", "repair"), FILES)
def test_a_file_that_was_cut_off(run, good_run, name, command, repair):
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = contents(run)
    assert name in refused(*filled(command, run=run))
    assert contents(run) == before
    if name == "run.json":  # nothing can make this one again from the rest
        path.write_bytes((good_run / name).read_bytes())
    elif path.suffix != ".onnx" or repair is None:
        path.unlink()
    if repair is not None:
        done(*(["score", *TINY, "--out", run] if repair == "score" else filled(repair, run=run)))
    done(*filled(command, run=run))


@pytest.mark.parametrize(
    "name", ["run.json", "scores.json", "policy.json", "budget.json", "build.json", "observations.json"]
)
@pytest.mark.parametrize("text", ["[]", "{}"])
def test_a_file_that_holds_something_else(run, name, text):
    (run / name).write_text(text)
    before = contents(run)
    command = ["report", run] if name in {"run.json", "budget.json", "policy.json", "build.json"} else None
    command = command or (["solve", run, "--budget", "latency=3x" if name == "observations.json" else "avg_bits=8"])
    message = refused(*command)
    assert name.partition(".")[0] in message
    assert contents(run) == before


@pytest.mark.parametrize("keep", [10, 4096, 6000])
def test_a_journal_that_was_cut_off(tmp_path, keep):
    out = tmp_path / "run"
    done("score", *TINY, "--out", out)
    journal = out / "journal.sqlite"
    journal.write_bytes(journal.read_bytes()[:keep])
    (out / "scores.json").unlink()
    assert "journal.sqlite is damaged or is no journal" in refused("score", *TINY, "--out", out)
    journal.unlink()
    done("score", *TINY, "--out", out)


def edit_policy(run, change):
    record = json.loads((run / "policy.json").read_text())
    change(record["policy"])
    (run / "policy.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.update({"third": "w8a8"}), "no quantisable layer 'third'; the first ones are first"),
        (lambda policy: policy.update({"first": "w8a1"}), "activations of type 1"),
        (lambda policy: policy.update({"first": "int8"}), "unknown format 'int8'"),
        (
            lambda policy: policy.update({"first": 8}),
            r"policy\.json is damaged: expected `str`, got `int` - at `\$\.policy\[\"first\"\]`",
        ),
        (lambda policy: policy.pop("second"), "does not name second"),
        (lambda policy: policy.update({"second": "w3a8"}), "gives second the format w3a8: .*; it may have"),
    ],
)
def test_a_policy_edited_by_hand(run, change, message):
    edit_policy(run, change)
    before = contents(run)
    assert_matches(message, refused("export", run))
    assert contents(run) == before


@pytest.mark.parametrize("command", ["build", "measure", "verify", "report"])
def test_a_policy_edited_by_hand_is_checked_by_every_stage(run, command):
    good = (run / "policy.json").read_bytes()
    edit_policy(run, lambda policy: policy.update({"third": "w8a8"}))
    before = contents(run)
    assert "no quantisable layer 'third'" in refused(command, run)
    assert contents(run) == before
    (run / "policy.json").write_bytes(good)
    done(command, run)


def test_a_policy_that_the_target_refuses_is_told_why(tmp_path):
    out = tmp_path / "run"
    done("score", *TINY, "--out", out, "--formats", "w8a8,w3a8,fp32")
    done("solve", out, "--budget", "avg_bits=32")
    edit_policy(out, lambda policy: policy.update({"second": "w3a8"}))
    message = refused("export", out)
    assert "the format w3a8: it is not in this run" not in message
    assert "it may have w8a8, fp32" in message


# Stages out of order.


def test_stages_before_their_time(tmp_path):
    out = tmp_path / "run"
    done("score", *TINY, "--out", out)
    before = contents(out)
    for command in ("export", "build", "report"):
        assert "policy.json is missing: make it with smpq solve" in refused(command, out)
    assert contents(out) == before
    done("solve", out, "--budget", "avg_bits=8")
    before = contents(out)
    assert "model.ort-cpu.onnx is missing: make it with smpq export" in refused("build", out)
    assert "model.ort-cpu.onnx is missing: make it with smpq export" in refused("verify", out)
    assert "use smpq export and smpq build first" in refused("measure", out)
    assert contents(out, without=["model.float.onnx", "model.float.json"]) == before
    done("export", out)
    assert "no engine of the policy in policy.json: use smpq build first" in refused("verify", out)
    done("build", out)
    done("verify", out)


def test_an_engine_that_only_a_device_builds_is_not_asked_of_this_machine(tmp_path):
    out = tmp_path / "run"
    done("score", *TINY, "--target", "jetson-orin", "--out", out)
    done("solve", out, "--budget", "avg_bits=8")
    done("export", out)
    message = refused("verify", out)
    assert_matches(
        "no engine of the policy in policy.json, and none can be built here: .* built on the device", message
    )
    assert "smpq build" not in message


def test_files_of_an_earlier_policy_are_not_taken_for_this_one(run):
    edit_policy(run, lambda policy: policy.update({"first": "fp32", "second": "fp32", "head": "fp32"}))
    before = contents(run)
    assert "is not of the policy in policy.json: use smpq export first" in refused("build", run)
    assert "is not of the policy in policy.json: use smpq export first" in refused("verify", run)
    assert "use smpq export and smpq build first" in refused("measure", run)
    assert contents(run) == before
    for command in ("export", "build", "verify"):
        done(command, run)


def test_measuring_what_cannot_be_measured_here(tmp_path):
    out = tmp_path / "run"
    done("run", *TINY, "--target", "simulate", "--formats", "w4a8,w8a8", "--budget", "avg_bits=6", "--out", out)
    assert "simulate has no engine to time" in refused("measure", out)
    assert "give a budget on size, avg_bits or bops" in refused(
        "run", *TINY, "--target", "simulate", "--formats", "w4a8,w8a8", "--budget", "latency=0.5x", "--out", out
    )


# Files of another model, or with other numbers than they were written with, are legal ONNX.


def with_a_changed_weight(path):
    model = onnx.load(str(path))
    tensor = next(
        each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT and len(each.dims) > 1
    )
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    "command", [("export", "{run}"), BUILD, ("bundle", "{run}", "{run}/bundle", "--budget", "latency=0.0001x")]
)
def test_a_float_model_with_other_numbers_is_not_used(run, command):
    with_a_changed_weight(run / "model.float.onnx")
    message = refused(*filled(command, run=run))
    assert_matches(r"model\.float\.onnx is not the file that was exported, .* delete it", message)
    (run / "model.float.onnx").unlink()
    done(*filled(command, run=run))


@pytest.mark.parametrize("command", [BUILD, ("measure", "{run}"), ("verify", "{run}")])
def test_an_exported_model_with_other_numbers_is_not_used(run, command):
    model = run / "model.ort-cpu.onnx"
    with_a_changed_weight(model) if command != BUILD else model.write_bytes((run / "model.float.onnx").read_bytes())
    assert_matches(r"model\.ort-cpu\.onnx is not the file that smpq export wrote", refused(*filled(command, run=run)))
    done("export", run)
    done(*filled(command, run=run))


def test_a_float_model_without_its_record_is_exported_again(run):
    with_a_changed_weight(run / "model.float.onnx")
    (run / "model.float.json").unlink()
    before = contents(run)["model.float.onnx"]
    done("export", run)
    assert contents(run)["model.float.onnx"] != before


def test_every_model_carries_the_fingerprint(run):
    parts = json.loads((run / "run.json").read_text())["fingerprint"]
    for name in ("model.float.onnx", "model.ort-cpu.onnx", "engine.ort-cpu.onnx"):
        metadata = {entry.key: entry.value for entry in onnx.load(str(run / name)).metadata_props}
        assert metadata["smpq.fingerprint"] == Fingerprint(**parts).key


def test_a_float_model_that_was_changed_with_its_record_is_not_used(run):
    with_a_changed_weight(run / "model.float.onnx")
    record = json.loads((run / "model.float.json").read_text())
    (run / "model.float.json").write_text(json.dumps({**record, "sha256": sha256(run / "model.float.onnx")}))
    message = refused("export", run)
    assert "model.float.onnx was changed, and its record with it: delete it, it is exported again" in message
