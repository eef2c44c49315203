"""Fine-tuning as a stage: later stages use its weights, and nothing that no longer fits is used in silence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy.files.engine import FinetuneFile
from deploy.stages.finetuning import FINE_TUNED, MODEL, tuned, version_of
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from tests.commands import assert_matches, contents, copy_of, done, refused, smpq
from tests.trainable_task import FAULT

RECORD = FinetuneFile.NAME
TASK = ("--task", "tests.trainable_task:task", "--rounding", "nearest", "--effort", "fast", "--samples", "32")
TUNE = ("--epochs", "4", "--learning-rate", "0.01", "--quiet")


def start(directory, target, formats, budget):
    """A run with a policy, its engine and its verification, not fine-tuned."""
    run = directory / target
    done("run", *TASK, "--target", target, "--formats", formats, "--budget", budget, "--out", run, "--quiet")
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return start(tmp_path_factory.mktemp("plain"), "simulate", "w2a8,w3a8", "avg_bits=2")


@pytest.fixture(scope="module")
def finished(plain, tmp_path_factory):
    run = copy_of(plain, tmp_path_factory.mktemp("finished") / "run")
    done("finetune", run, *TUNE)
    for command in ("export", "build", "verify", "report"):
        done(command, run, "--quiet")
    return run


@pytest.fixture
def run(finished, tmp_path):
    return copy_of(finished, tmp_path / "run")


def read(run, name):
    return json.loads((run / name).read_text())


def test_the_engine_is_the_fine_tuned_model(plain, finished):
    before, after = read(plain, "verify.json")["stages"], read(finished, "verify.json")["stages"]
    record = read(finished, RECORD)
    assert record["kept"] == "end"
    assert record["after"]["value"] > record["before"]["value"]
    assert after["float"] == before["float"], "the baseline is the model that was given"
    assert after["fake_quant"]["mean"] > before["fake_quant"]["mean"] + 0.05
    for stage in ("onnx", "engine"):
        assert after[stage]["agreement"] > 0.98
    report = read(finished, "report.json")
    assert report["finetuning"]["after"] == record["after"]
    assert read(plain, "report.json")["finetuning"] is None
    assert (read(plain, "report.json")["tuning"], report["tuning"]) == ("finetune", None), "what is left to try"
    assert report["accuracy"]["engine"] == after["engine"]["mean"]


def test_the_engine_holds_the_integers_that_were_trained(finished):
    with open_run(finished, Progress()) as workspace:
        policy = read_policy(workspace)
        found = tuned(workspace, policy)
        assert found is not None
        weights = load_file(finished / FINE_TUNED)
        for unit in workspace.space.units:
            simulated = found.edits().parameters[unit.weight]
            step = weights[f"scale/{unit.path}"].reshape(-1, *[1] * (simulated.dim() - 1))
            assert torch.equal(simulated, weights[f"integers/{unit.path}"].float() * step)
            assert not torch.equal(found.traced.state[unit.weight], workspace.traced.state[unit.weight])


def test_integer_kernels_compute_what_was_trained(tmp_path):
    run = start(tmp_path, "ort-cpu", "w7a8,w8a8", "avg_bits=7.5")
    (run / "engine.ort-cpu.onnx").unlink()
    message = done("finetune", run, "--epochs", "6", "--learn-activations").out
    assert "finetuned.safetensors (on calibration data: value" in message
    for command in ("export", "build", "measure", "verify", "report"):
        done(command, run, "--quiet")
    stages = read(run, "verify.json")["stages"]
    assert stages["onnx"]["agreement"] > 0.99
    assert stages["engine"]["agreement"] > 0.98
    assert abs(stages["engine"]["change"]) < 0.02
    assert all(kernel["agrees"] for kernel in read(run, "build.json")["kernels"].values())
    assert read(run, "report.json")["latency"] is not None


def test_what_was_made_before_is_refused(plain, tmp_path):
    run = copy_of(plain, tmp_path / "run")
    done("finetune", run, "--epochs", "0.5", "--quiet")
    assert_matches("and its fine-tuning: use smpq export first", refused("build", run))
    assert_matches("and its fine-tuning: use smpq export first", refused("verify", run))
    done("report", run, "--quiet")
    assert read(run, "report.json")["accuracy"]["engine"] is None
    done("export", run, "--quiet")
    assert_matches("of the policy in policy.json and its fine-tuning: use smpq build first", refused("verify", run))
    done("build", run, "--quiet")
    done("finetune", run, *TUNE)
    assert_matches("and its fine-tuning: use smpq export first", refused("build", run))


def test_a_changed_policy_is_not_fine_tuned(run):
    record = read(run, "policy.json")
    path = next(iter(record["policy"]))
    record["policy"][path] = "w3a8"
    (run / "policy.json").write_text(json.dumps(record))
    before = contents(run)
    for command in ("export", "build", "verify", "report"):
        assert_matches(
            f"{FINE_TUNED} was fine-tuned for another policy.*use smpq finetune again, or delete {FINE_TUNED}",
            refused(command, run),
        )
    assert contents(run) == before
    (run / FINE_TUNED).unlink()
    done("export", run, "--quiet")
    done("build", run, "--quiet")
    assert smpq("report", run, "--quiet").code == 1  # more bits than the budget
    assert read(run, "report.json")["finetuning"] is None
    done("finetune", run, "--epochs", "0.2", "--quiet")
    done("export", run, "--quiet")


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "nan", "schema", "lacking"])
def test_a_damaged_file(run, damage):
    path = run / FINE_TUNED
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif damage == "schema":
        path.write_bytes(content.replace(b'\\"schema\\": 1', b'\\"schema\\": 7'))
    else:
        rewrite(path, damage)
    message = refused("export", run)
    assert_matches({"nan": "not finite", "schema": "schema 7"}.get(damage, "damaged.*delete it"), message)
    assert FINE_TUNED in message
    path.unlink()
    done("export", run, "--quiet")


def rewrite(path, damage):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("scale/"))
    if damage == "nan":
        tensors[name][0] = torch.nan
    else:
        del tensors[name]
    save_file(tensors, path, metadata)


def test_the_record_is_about_the_file(run):
    (run / RECORD).unlink()
    assert_matches(f"{RECORD} is missing: make it with smpq finetune", refused("report", run))
    done("finetune", run, "--epochs", "0.3", "--quiet")
    record = read(run, RECORD)
    (run / RECORD).write_text(json.dumps({**record, "sha256": "0" * 64}))
    assert_matches("is not about", refused("report", run))


def test_weights_of_another_run(run, tmp_path):
    with open_run(run, Progress()) as workspace:
        policy = read_policy(workspace)
        assert version_of(workspace.run, policy) != policy.key()
        key = workspace.fingerprint.encode()
    path = run / FINE_TUNED
    content = path.read_bytes()
    assert key in content
    path.write_bytes(content.replace(key, b"0" * len(key)))
    assert_matches("another model or other calibration data", refused("export", run))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("untrained", "has no training data: give it a method training"),
        ("nan", "training batch 3 of epoch 0 holds NaN"),
    ],
)
def test_wrong_training_data_leaves_the_run_as_it_was(plain, tmp_path, monkeypatch, fault, message):
    run = copy_of(plain, tmp_path / "run")
    noted = ["run.json"]  # which says whether the task has training data
    before = contents(run, without=noted)
    monkeypatch.setenv(FAULT, fault)
    assert_matches(message, refused("finetune", run, *TUNE))
    assert contents(run, without=noted) == before
    assert read(run, "run.json")["trainable"] == (fault != "untrained")
    if fault == "untrained":
        out = tmp_path / "other"
        assert_matches(
            message,
            refused("run", *TASK, "--target", "simulate", "--budget", "avg_bits=8", "--finetune", "1", "--out", out),
        )
        assert not (out / "scores.json").exists(), "said before the search"


def test_formats_that_cannot_be_trained_are_said_before_the_search(tmp_path):
    out = tmp_path / "run"
    command = ("run", *TASK, "--target", "simulate", "--formats", "w8a8,fp8", "--budget", "avg_bits=8", "--out", out)
    assert_matches("fp8 cannot be trained", refused(*command, "--finetune", "1"))
    assert not (out / "scores.json").exists()


def test_one_that_was_stopped_leaves_nothing_and_can_be_started_again(plain, tmp_path, monkeypatch):
    run = copy_of(plain, tmp_path / "run")
    before = contents(run)
    monkeypatch.setenv(FAULT, "stopped")
    assert smpq("finetune", run, *TUNE).code == 130
    assert contents(run) == before
    monkeypatch.delenv(FAULT)
    done("finetune", run, *TUNE)


def test_a_diverging_training_and_float_policies(plain, tmp_path):
    run = copy_of(plain, tmp_path / "run")
    assert_matches("diverged.*smaller learning rate", refused("finetune", run, "--learning-rate", "1e9"))
    record = read(run, "policy.json")
    record["policy"] = dict.fromkeys(record["policy"], "fp32")
    (run / "policy.json").write_text(json.dumps(record))
    assert_matches("nothing to fine-tune", refused("finetune", run))


def test_the_whole_job_fine_tunes_once(tmp_path):
    arguments = (*TASK, "--target", "simulate", "--formats", "w2a8,w3a8", "--out", tmp_path / "run", "--finetune", "4")
    done("run", *arguments, "--budget", "avg_bits=2", "--quiet")
    run = tmp_path / "run"
    first = contents(run)
    assert {FINE_TUNED, RECORD, MODEL} <= first.keys()
    assert read(run, "verify.json")["policy"].startswith(read(run, RECORD)["policy"])
    (run / RECORD).unlink()  # as a kill between the two files leaves it
    again = done("run", *arguments, "--budget", "avg_bits=2")
    assert "fine-tuned already" in again.err
    assert read(run, RECORD) == json.loads(first[RECORD])
    assert (run / FINE_TUNED).read_bytes() == first[FINE_TUNED]
    other = done("run", *arguments, "--budget", "avg_bits=2.5")
    assert "is of another policy: removed" in other.err
    assert (run / FINE_TUNED).read_bytes() != first[FINE_TUNED]
    assert_matches(
        "fine-tuned for another policy", refused("run", *arguments[:-2], "--budget", "avg_bits=2", "--quiet")
    )


@pytest.mark.slow
def test_digits_from_training_to_integer_kernels(tmp_path):
    run = tmp_path / "run"
    task = ("--task", "digits", "--method", "uniform", "--samples", "64", "--value", "loss", "--formats", "w7a8")
    done("run", *task, "--budget", "avg_bits=7", "--finetune", "1", "--out", run, "--quiet")
    record, stages = read(run, RECORD), read(run, "verify.json")["stages"]
    assert record["kept"] == "end"
    assert record["after"]["value"] > record["before"]["value"]
    assert all(stages[name]["mean"] > 0.97 for name in stages)
    assert stages["onnx"]["agreement"] > 0.995
    assert stages["engine"]["agreement"] > 0.995
    assert abs(stages["engine"]["change"]) < 0.005
