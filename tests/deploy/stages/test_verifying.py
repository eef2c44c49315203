"""Points that are lost on purpose, at one stage at a time."""

import numpy as np
import onnx
import pytest
import torch

from calib.errors import UserError
from calib.task import Batch
from deploy.backends import onnxruntime as ort_backend
from deploy.backends.tensorrt import backend as tensorrt_backend
from deploy.files.verification import STAGES
from deploy.stages import verifying
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run
from deploy.stages.verifying import verify
from deploy.terminal.progress import Progress
from tests.commands import TINY, copy_of, done
from tests.tiny_task import batches, network


@pytest.fixture
def run(good_run, tmp_path):
    return copy_of(good_run, tmp_path / "run")


def verified(run):
    workspace = open_run(run, Progress())
    return checked(workspace)


def checked(workspace):
    record = verify(workspace, read_policy(workspace), "policy")
    assert record.contradiction() is None, record
    return record


def turn_around(path):
    """Give the last layer the opposite weights: a legal file that computes something else."""
    model = onnx.load(str(path))
    (node,) = [node for node in model.graph.node if node.name == "head"]
    makers = {output: maker for maker in model.graph.node for output in maker.output}
    name = node.input[1]
    while name in makers:
        name = makers[name].input[0]
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array((-values.astype(np.int32)).clip(-127, 127).astype(values.dtype), name))
    onnx.save(model, str(path))


def test_a_good_engine_loses_nothing(run):
    record = verified(run)
    assert tuple(record.stages) == STAGES
    assert record.metric == "accuracy"
    assert record.samples == 16
    assert record.stages["eager"].mean == 1.0
    assert record.stages["eager"].change is None
    assert (record.stages["float"].change, record.stages["float"].agreement) == (0.0, 1.0)
    assert record.lost_at is None
    assert "no stage lost points" in record.explanation
    for name in STAGES[1:]:
        assert record.stages[name].agreement >= 0.9
    assert record.stages["onnx"].agreement == 1.0


def test_how_sure_the_model_is(run, monkeypatch):
    """Of class scores it is known; a task that says it otherwise is asked."""
    workspace = open_run(run, Progress())
    record, model = checked(workspace).confidence, network()
    with torch.no_grad():
        known = torch.cat([model(inputs).softmax(1).amax(1) for inputs, _ in batches(2)])
    assert record.first.median == pytest.approx(float(known.quantile(0.5)), abs=1e-6)
    assert record.change == pytest.approx(0, abs=0.05)
    monkeypatch.setattr(workspace.task, "confidences", lambda output: output[:, 0] * 0 + 0.25, raising=False)
    assert checked(workspace).confidence.last.median == 0.25


def test_a_damaged_onnx_file(run):
    turn_around(run / "model.ort-cpu.onnx")
    record = verified(run)
    assert record.lost_at == "onnx"
    assert "export" in record.explanation
    assert record.stages["onnx"].change < -0.3
    assert record.stages["engine"].change > 0.3, "the engine was built before the damage"


def test_a_damaged_engine(run, tmp_path):
    wrong = copy_of(run, tmp_path / "wrong") / "model.ort-cpu.onnx"
    turn_around(wrong)
    ort_backend.build_engine(wrong, run / "engine.ort-cpu.onnx")
    record = verified(run)
    assert record.lost_at == "engine"
    assert "runtime" in record.explanation
    assert record.stages["onnx"].agreement == 1.0
    assert record.stages["engine"].agreement < 0.7


def test_an_engine_that_was_replaced_is_not_run(run):
    turn_around(run / "engine.ort-cpu.onnx")
    with pytest.raises(UserError, match=r"is not the file that engine\.json describes"):
        verified(run)


def test_quantisation_itself(tmp_path, monkeypatch):
    out = tmp_path / "run"
    search = ["--target", "simulate", "--formats", "w2a4", "--rounding", "nearest"]
    done("run", *TINY, *search, "--budget", "avg_bits=2", "--out", out)
    workspace = open_run(out, Progress())
    inputs = torch.randn(400, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        held_out = [Batch((inputs,), network()(inputs).argmax(1))]
    monkeypatch.setattr(workspace.task, "evaluation", lambda: held_out)
    record = checked(workspace)
    assert record.lost_at == "fake_quant"
    assert "more bits" in record.explanation
    assert record.stages["engine"].agreement == 1.0


def test_the_intervals_are_those_of_paired_samples(run, monkeypatch):
    workspace = open_run(run, Progress())
    targets = torch.cat([target for _, target in batches(2)])
    wrong = [0, 5, 9]

    def metric(output, target):
        # every sample is worth something else, and three of them are worth less in all but the module and its trace
        start = 0 if torch.equal(target, targets[:8]) else 8
        values = torch.arange(8) * 10.0
        if metric.stage not in (1, 2, 5, 8):  # the engine, the last stage, comes second, the others batch by batch
            values = values - torch.tensor([float(start + index in wrong) for index in range(8)])
        metric.stage += 1
        return values

    metric.stage = 1
    monkeypatch.setattr(workspace.task, "metric", metric)
    record = checked(workspace)
    change = record.stages["fake_quant"]
    assert change.change == pytest.approx(-3 / 16)
    differences = np.array([-float(index in wrong) for index in range(16)])
    half = 1.96 * differences.std(ddof=1) / 4
    assert (change.change_interval.low, change.change_interval.high) == pytest.approx((-3 / 16 - half, -3 / 16 + half))
    samples = record.stages["float"].interval
    assert samples.high - samples.low > 10, "the spread of the samples themselves"


def test_batches_of_other_sizes_than_the_engine_takes(run, monkeypatch):
    workspace = open_run(run, Progress())
    inputs, targets = (torch.cat(column) for column in zip(*batches(2), strict=True))
    uneven = [Batch((inputs[a:b],), targets[a:b]) for a, b in ((0, 1), (1, 6), (6, 16))]
    monkeypatch.setattr(workspace.task, "evaluation", lambda: uneven)
    record = checked(workspace)
    assert record.samples == 16
    assert record.stages["engine"] == verified(run).stages["engine"]


def test_a_module_that_changed_behind_the_trace(run):
    workspace = open_run(run, Progress())
    with torch.no_grad():
        workspace.original.head.weight.neg_()
    record = checked(workspace)
    assert record.lost_at == "float"
    assert "does not compute what the PyTorch module does" in record.explanation
    assert "output differs by up to" in record.explanation


def in_order_of_classes(count):
    """Batches of 8, sorted by class, which the float model gets all right."""
    inputs = torch.randn(8 * count, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        targets = network()(inputs).argmax(1)
    inputs, targets = inputs[targets.argsort(stable=True)], targets.sort().values
    return [Batch((inputs[a : a + 8],), targets[a : a + 8]) for a in range(0, 8 * count, 8)]


def test_the_stages_between_have_as_many_samples_as_it_takes(run, monkeypatch):
    workspace = open_run(run, Progress())
    monkeypatch.setattr(verifying, "_FIRST_SAMPLES", 32)
    monkeypatch.setattr(workspace.task, "evaluation", lambda: in_order_of_classes(40))
    record = checked(workspace)
    assert [row.samples for row in record.stages.values()] == [320, 32, 32, 32, 320]
    assert set(record.means) == {"eager", "engine"}
    assert record.whole.change == pytest.approx(record.stages["engine"].mean - record.stages["eager"].mean)
    assert not record.lost_in_all


def test_a_loss_is_followed_until_the_data_tell_where_it_is(run, monkeypatch):
    compute = ort_backend.OrtEngine.run

    def one_wrong(self, inputs):
        (output,) = compute(self, inputs)
        output[-1 if self.path.name.startswith("engine.") else -2 :][0] *= -1
        return [output]

    workspace = open_run(run, Progress())
    monkeypatch.setattr(ort_backend.OrtEngine, "run", one_wrong)
    monkeypatch.setattr(verifying, "_FIRST_SAMPLES", 8)
    monkeypatch.setattr(workspace.task, "evaluation", lambda: in_order_of_classes(40))
    record = checked(workspace)
    between = record.stages["onnx"].samples
    assert 8 < between < 320
    assert "onnx" in record.lost
    ends = [row.change_interval for row in record.stages.values() if row.change_interval is not None]
    assert sorted(each.high - each.low for each in ends)[-2] <= -record.whole.interval.low


@pytest.mark.parametrize("stage", ["eager", "engine"])
def test_outputs_that_are_not_finite_are_counted(run, monkeypatch, stage):
    workspace = open_run(run, Progress())
    data = [Batch((inputs.clone(),), target) for inputs, target in batches(2)]
    if stage == "eager":
        data[1].inputs[0][3:5] = 3e38
        workspace.original.head.weight.data.mul_(1e6)
    else:
        compute = ort_backend.OrtEngine.run

        def broken(self, inputs):
            outputs = compute(self, inputs)
            if self.path.name.startswith("engine."):
                outputs[0][3:5] = np.nan
            return outputs

        monkeypatch.setattr(ort_backend.OrtEngine, "run", broken)
        data = data[:1]
    monkeypatch.setattr(workspace.task, "evaluation", lambda: data)
    with pytest.raises(
        UserError, match=rf"output of stage {stage} holds NaN or infinity for 2 of {8 * len(data)} samples"
    ):
        checked(workspace)


def test_an_engine_that_computes_something_else_for_one_sample(run, monkeypatch):
    compute = ort_backend.OrtEngine.run

    def by_size(self, inputs):
        outputs = compute(self, inputs)
        return [output[:, ::-1].copy() if len(output) == 1 else output for output in outputs]

    workspace = open_run(run, Progress())
    monkeypatch.setattr(ort_backend.OrtEngine, "run", by_size)
    record = checked(workspace)
    assert record.lost_at == "engine"
    assert "with a batch of 1 output 0 of the engine is" in record.explanation


@pytest.fixture
def plan_run(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    out = tmp_path / "run"
    done("run", *TINY, "--target", "tensorrt-rtx", "--sm", "sm86", "--budget", "size=0.9x", "--out", out, "--quiet")
    return out


class OrtInsteadOfPlan:
    """Computes what the plan was built from, where there is no GPU for the plan."""

    def __init__(self, plan, runtime, input_names):
        assert (plan.name, runtime) == ("engine.tensorrt-rtx.sm86.plan", "tensorrt-rtx")
        assert plan.is_file()
        record = ort_backend.build_engine(
            plan.with_name("model.tensorrt-rtx.onnx"), plan.with_name("exact.onnx"), exact=True
        )
        self._engine = ort_backend.load_engine(plan.with_name("exact.onnx"))
        self._shape = list(record.inputs[0].shape)
        assert self._engine.input_names == tuple(input_names)

    def run(self, inputs):
        assert list(inputs[0].shape) == self._shape
        return self._engine.run(inputs)


def test_a_plan_is_run_where_there_is_its_gpu(plan_run, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, "gpu_sm", lambda: "sm86")
    monkeypatch.setattr(tensorrt_backend, "PlanRunner", OrtInsteadOfPlan)
    record = verified(plan_run)
    assert record.stages["engine"].agreement == 1.0
    assert record.stages["engine"].change == 0.0
    assert record.stages["engine"].not_run is None


def test_a_plan_is_not_run_on_another_gpu_or_without_one(plan_run, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, "gpu_sm", lambda: "sm89")
    assert "build for it with --sm sm89" in verified(plan_run).stages["engine"].not_run

    def no_gpu():
        raise UserError("running an engine needs an NVIDIA GPU")

    monkeypatch.setattr(tensorrt_backend, "gpu_sm", no_gpu)
    assert verified(plan_run).stages["engine"].not_run == "running an engine needs an NVIDIA GPU"
