"""`optimize`: the whole job from Python."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import deploy
from calib.data import training_batches
from calib.errors import UserError
from deploy import optimize
from deploy.files.search import LossFile
from deploy.python.task import SetMetric, TaskInMemory
from deploy.run.directory import Run
from smpq.training.settings import FineTuneSettings
from tests import tiny_task
from tests.commands import TINY, done, refused
from tests.smpq.ranking import auc

FORMATS = "w8a8,w4a8,fp32"
FASTER = {"budget": "size=0.3x", "target": "simulate", "evaluations": 12, "samples": 16, "formats": FORMATS}


def right(output, target):
    return (output.argmax(1) == target).float()


@pytest.fixture(scope="module")
def optimized(tmp_path_factory):
    out = tmp_path_factory.mktemp("python") / "run"
    result = optimize(
        tiny_task.network(), tiny_task.batches(1), tiny_task.batches(2), right, out=out, verbose=False, **FASTER
    )
    return out, result


@pytest.mark.slow
def test_the_files_are_those_of_the_command(optimized, tmp_path):
    out, _ = optimized
    run = tmp_path / "run"
    options = ("--budget", FASTER["budget"], "--target", "simulate", "--formats", FORMATS)
    done("run", *TINY, *options, "--out", run)
    names = {path.name for path in run.iterdir() if path.suffix == ".json"}
    assert names == {path.name for path in out.iterdir() if path.suffix == ".json"}
    for name in ("policy.json", "scores.json", "space.json", "costs.json", "budget.json", "stability.json"):
        assert (out / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.slow
def test_what_the_result_holds(optimized):
    out, result = optimized
    assert result.met
    assert result.path == out
    assert set(result.policy.values()) <= set(FORMATS.split(","))
    assert result.latency is None
    assert result.engine_note is None
    inputs, _ = tiny_task.batches(2)[0]
    found = result.module(inputs)
    assert found.shape == (8, 3)
    assert torch.equal(found, result.module(inputs.numpy()))
    exact = torch.cat([right(result.module(x), y) for x, y in tiny_task.batches(2)]).mean()
    assert result.accuracy["fake_quant"].mean == pytest.approx(float(exact))
    assert "Is it faster?" in repr(result)
    shown = result._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<html" not in shown, "the page is escaped"


@pytest.mark.slow
def test_the_commands_work_on_the_run(optimized):
    out, _ = optimized
    done("report", out)
    assert "call deploy.optimize again" in refused("verify", out)
    again = optimize(
        tiny_task.network(), tiny_task.batches(1), tiny_task.batches(2), right, out=out, verbose=False, **FASTER
    )
    assert again.policy == optimized[1].policy, "its lock went with the first call"
    with pytest.raises(UserError, match="another"):
        optimize(
            tiny_task.network(), tiny_task.batches(3), tiny_task.batches(2), right, out=out, verbose=False, **FASTER
        )


@pytest.mark.slow
def test_an_engine_without_labels(tmp_path):
    """Without a metric the model's own outputs are the targets; the engine is called with arrays."""
    data = [inputs for inputs, _ in tiny_task.batches(1)]
    result = optimize(
        tiny_task.network(), data, iter(data), out=tmp_path / "run", verbose=False, evaluations=12, samples=16,
        formats="w8a8,fp32", budget="size=0.9x",
    )  # fmt: skip
    assert result.engine_note is None
    expected, found = result.module(data[0]), result.engine(data[0].numpy())
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=0.05 * float(expected.abs().max()))
    assert result.latency.interval.low <= result.latency.ratio <= result.latency.interval.high
    assert result.accuracy["eager"].mean == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"calibration": []}, "calibration has no batches"),
        ({"calibration": [3]}, "a batch is of type int"),
        ({"evaluation": 3}, "evaluation cannot be used as batches"),
        ({"budget": "drop=0.5", "metric": None}, "needs a metric"),
        ({"metric_of": max}, r"needs records\(output, target\) and metric_of\(records\)"),
        ({"groups": list}, r"needs records\(output, target\) and metric_of\(records\)"),
        ({"records": zip, "metric_of": max}, "give one of them"),
        ({"budget": "fast"}, "budget"),
        ({"finetune": 2}, "fine-tuning needs training="),
        ({"finetune": -1, "training": []}, "finetune= must be"),
        ({"finetune": 2, "training": [3]}, "training cannot be used as batches .a batch is of type int"),
        ({"finetune": FineTuneSettings(), "training": [3]}, "needs loss=: give one, or labels=0"),
        ({"finetune": 2, "training": iter([])}, "gave no batch"),
        ({"efort": "fast"}, "no argument efort: the settings are .*effort"),
        ({"sm": "sm86"}, "no argument sm: give the option of that name as compute_capabilities="),
        ({"pin": ["head*=float"]}, "no argument pin: .* as pins="),
        ({"shape": ["x=1x3"]}, "no argument shape: .* as shapes="),
        ({"size-only": True}, "no argument size-only: .* as size_only="),
        ({"task": "digits"}, "no argument task: the settings are data"),
        ({"effort": "quick"}, "effort= must be"),
        ({"data_free": True}, "optimize is given samples"),
    ],
)
def test_wrong_input_is_told_and_leaves_nothing(tmp_path, wrong, message):
    given = {
        "calibration": tiny_task.batches(1),
        "evaluation": tiny_task.batches(2),
        "metric": right,
        "out": tmp_path / "run",
    }
    with pytest.raises(UserError, match=message):
        optimize(tiny_task.network(), **{**given, "verbose": False, **wrong})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_metric_of_all_samples_together(tmp_path):
    def records(output, target):
        return list(zip((target == 0).tolist(), output[:, 0].tolist(), strict=True))

    data = tiny_task.batches(1)
    result = optimize(
        tiny_task.network(), data, tiny_task.batches(2), records=records, metric_of=auc, verbose=False,
        groups=lambda target: range(len(target)), out=tmp_path / "run", **FASTER,
    )  # fmt: skip
    outputs = [records(result.module(x), y) for x, y in tiny_task.batches(2)]
    assert result.report.verification.metric == "auc"
    assert result.accuracy["fake_quant"].mean == pytest.approx(auc(outputs[0] + outputs[1]))
    task = TaskInMemory("in-memory", tiny_task.network(), data, data, None, whole=SetMetric(records, auc))
    assert torch.equal(task.calibration()[0].target, data[0][1]), "the targets are those that are given"
    assert not hasattr(task, "groups")
    with pytest.raises(UserError, match="is no loss of each sample: give loss="):
        task.loss(torch.eye(3), torch.arange(3))


def test_a_metric_that_nobody_named_as_a_share_is_one(tmp_path, capsys):
    data = tiny_task.batches(1)
    asked = {**FASTER, "budget": "drop=0.5"}
    result = optimize(tiny_task.network(), data, data, right, out=tmp_path / "a", **asked)
    assert "a point of right is 0.01, since it lies between 0 and 1" in capsys.readouterr().err
    assert (result.report.limits[0].limit, result.report.limits[0].cost) == (0.5, "drop")
    wide = optimize(tiny_task.network(), data, data, right, out=tmp_path / "b", metric_point=0.9, **asked)
    assert wide.report.avg_bits < result.report.avg_bits, "45 points may be lost"


def test_held_out_samples_that_were_added_decide(tmp_path):
    data, asked = tiny_task.batches(1), {**FASTER, "budget": "drop=45", "formats": "w2a8,fp32", "out": tmp_path / "run"}
    few = tiny_task.batches(3)
    optimize(tiny_task.network(), data, data, right, selection=few, verbose=False, **asked)
    result = optimize(
        tiny_task.network(), data, data, right, selection=few + tiny_task.batches(4), verbose=False, **asked
    )
    lost = Run(result.path).read(LossFile)
    assert (lost.samples, lost.data) == (32, "selection")


def test_a_run_is_about_one_metric(tmp_path):
    data, asked = tiny_task.batches(1), {**FASTER, "out": tmp_path / "run"}
    optimize(tiny_task.network(), data, data, right, verbose=False, **asked)

    def wrong(output, target):
        return (output.argmax(1) != target).float()

    with pytest.raises(UserError, match=r"the task's metric, loss or divergence changed since .*: use another out="):
        optimize(tiny_task.network(), data, data, wrong, verbose=False, **asked)


def test_a_drop_that_is_all_there_is_of_a_metric_is_refused(tmp_path):
    def minus_error(output, target):
        return -0.01 * torch.nn.functional.cross_entropy(output, target, reduction="none")

    data = tiny_task.batches(1)
    asked = {**FASTER, "budget": "drop=0.5"}
    with pytest.raises(UserError, match=r"drop=0.5 is 0.5 of minus_error, .* \(metric_point\), or give a smaller drop"):
        optimize(tiny_task.network(), data, data, minus_error, out=tmp_path / "run", verbose=False, **asked)


def test_importing_deploy_loads_nothing():
    code = "import sys, deploy; print('torch' in sys.modules, 'optimize' in dir(deploy) or deploy.__all__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False ['optimize']\n"
    with pytest.raises(AttributeError, match="nothing"):
        _ = deploy.nothing


def loss(output, target):
    return torch.nn.functional.cross_entropy(output, target, reduction="none")


@pytest.mark.slow
def test_the_weights_are_trained_where_that_is_asked_for(tmp_path):
    passes = []

    def training(epoch):
        passes.append(epoch)
        return tiny_task.batches(10 + epoch)

    result = optimize(
        tiny_task.network(), tiny_task.batches(1), tiny_task.batches(2), right, out=tmp_path / "run", verbose=False,
        training=training, finetune=2, **{**FASTER, "formats": "w4a8,fp32"},
    )  # fmt: skip
    assert set(passes) == {0, 1}
    assert result.report.finetuning.settings["epochs"] == 2
    assert result.report.finetuning.settings["labels"] == 0, "the metric counts, and has no gradient"
    exact = torch.cat([right(result.module(x), y) for x, y in tiny_task.batches(2)]).mean()
    assert result.accuracy["fake_quant"].mean == pytest.approx(float(exact)), "the module has the trained weights"


def test_training_batches_as_people_have_them():
    model, batches = tiny_task.network(), tiny_task.batches(1)

    def of(training, metric=right):
        task = TaskInMemory("in-memory", model, batches, batches, metric, training=training, loss=loss)
        return [list(training_batches(task, epoch)) for epoch in (0, 1)]

    for training in (batches, iter(batches), lambda _: iter(batches)):
        first, second = of(training)
        assert len(first) == len(second) == len(batches)
        assert torch.equal(first[0].inputs[0], batches[0][0])
        assert torch.equal(first[0].target, batches[0][1])
    taught = of([inputs for inputs, _ in batches], metric=None)[0]
    assert torch.equal(taught[0].target, model(batches[0][0])), "without labels the model teaches"
    with pytest.raises(UserError, match="no training data"):
        next(training_batches(TaskInMemory("in-memory", model, batches, batches, right), 0))
    task = TaskInMemory("in-memory", model, batches, batches, right, loss=loss)
    assert torch.equal(task.loss(torch.eye(3), torch.arange(3)), loss(torch.eye(3), torch.arange(3)))
    assert torch.equal(
        TaskInMemory("in-memory", model, batches, batches, right).loss(torch.eye(3), torch.arange(3)), -torch.ones(3)
    )


@pytest.mark.parametrize("own", [False, True])
def test_one_number_a_sample_without_a_metric(tmp_path, own, capsys):
    """The squared difference tells policies apart, or what the caller says."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)).eval()
    data = [inputs for inputs, _ in tiny_task.batches(1)]
    asked = {"divergence": lambda output, reference: 3 * (output - reference).abs()} if own else {}
    result = optimize(
        network, data, data, target="simulate", formats="w2a8,w8a8", budget="size=0.3x", samples=16, effort="fast",
        out=tmp_path / "run", **asked,
    )  # fmt: skip
    apart = torch.cat([result.module(x) - network(x) for x in data]).detach().abs()
    expected = 3 * apart.mean() if own else apart.square().mean() / 2
    assert result.accuracy["fake_quant"].mean == pytest.approx(-float(expected), rel=1e-3)
    assert float(expected) > 0
    assert "the targets are numbers" not in capsys.readouterr().err


def test_a_drop_in_percent_is_one_in_points(tmp_path):
    def percent(output, target):
        return 100 * right(output, target)

    data, asked = tiny_task.batches(1), {**FASTER, "budget": "drop=5", "verbose": False}
    held_out = tiny_task.batches(3)
    found = [
        Run(optimize(tiny_task.network(), data, data, metric, selection=held_out, out=tmp_path / name, **asked).path)
        for name, metric in (("share", right), ("percent", percent))
    ]
    shares, hundreds = (run.read(LossFile) for run in found)
    assert shares.interval == hundreds.interval
