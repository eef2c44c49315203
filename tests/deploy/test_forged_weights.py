"""Fine-tuned weights in a run that no training has made: no stage uses them."""

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.commands import contents, copy_of, done, refused

TASK = (
    "--task",
    "tests.trainable_task:task",
    "--rounding",
    "nearest",
    "--effort",
    "fast",
    "--samples",
    "32",
    "--evaluations",
    "10",
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "run"
    done("score", *TASK, "--target", "simulate", "--formats", "w3a8,w4a8", "--out", run)
    done("solve", run, "--budget", "avg_bits=3.5")
    done("finetune", run, "--epochs", "0.5", "--learning-rate", "0.01")
    done("export", run)
    return run


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("integers/stem", 100, "has integers outside of"),
        ("scale/stem", -0.5, "not all above zero"),
        ("scale/stem", float("nan"), "not finite"),
        ("parameter/head.weight", None, "the parameter 'head.weight' does not fit the model"),
    ],
)
def test_no_stage_uses_forged_weights(tuned, tmp_path, name, value, message):
    run = copy_of(tuned, tmp_path / "run")
    path = run / "finetuned.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if value is None:
        del tensors[name]
    else:
        tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata)
    before = contents(run)
    assert message in refused("export", run)
    assert "use smpq export first" in refused("verify", run)  # what was exported is of other weights
    assert contents(run) == before
