"""Engines that only the device can build: the whole job, on a board that is none. Nothing here was run on hardware."""

from __future__ import annotations

import itertools
import json
from hashlib import sha256
from pathlib import Path

import msgspec
import onnx
import pytest
from rich.console import Console

from calib.errors import UserError
from calib.formats.format import Format
from deploy.devices.base import Experiment, Result
from deploy.devices.products import ProductFile, find_product
from deploy.files.engine import BuildFile
from deploy.lowering.onnx_files import sha256 as model_sha256
from deploy.run.settings import Settings
from deploy.runner.gpu import Gpu
from deploy.stages.making import build, export, export_qdq, measure, measure_again, verify
from deploy.stages.policies import read_policy, write_policy
from deploy.stages.run_all import open_run, run_all
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from tests.deploy.backends.builds import needs_rtx
from tests.deploy.board import FASTER, Board
from tests.deploy.measured_plans import write_product_of
from tests.deploy.runner.fake_cuda import FakeCuda

ORIN = "ssh://me@orin"
QUIET = Progress(Console(quiet=True))


def settings(target: str, formats: str) -> Settings:
    return Settings("tests.tiny_task:exacting", target, formats=formats, samples=16, evaluations=12, effort="fast")


def read(file):
    return json.loads(file.read_text())


@pytest.fixture
def board(monkeypatch):
    made = Board(FASTER)
    monkeypatch.setattr("deploy.run.opening.device_from_address", lambda address, directory: made)
    return made


def test_tensorrt_builds_on_the_device_and_the_job_goes_on_to_its_end(tmp_path, board):
    run = tmp_path / "run"
    report = run_all(run, settings("jetson-orin", "w8a8,fp16"), "latency=0.75x", QUIET, device=ORIN)
    assert report.met
    assert report.options["--device"] == (ORIN,)
    assert report.engine is None
    assert list(run.glob("engine*")) == list(run.glob("*.plan")) == []
    for experiment in board.experiments:
        check_experiment(experiment)
    built = read(run / "build.json")
    assert (built["built_on"], built["engines"]) == ("a board", {})
    planned = read(run / "policy.json")["policy"]
    assert planned["second"] == "w8a8"
    assert {path: kernel["kernel"] for path, kernel in built["kernels"].items() if planned[path] == "w8a8"} == {
        "second": "int8"
    }
    engine = read(run / "verify.json")["stages"]["engine"]
    assert engine["not_run"] == "it was built on a board, which does not have the evaluation data"
    assert read(run / "latency.json")["measurement"]["ratio"] == pytest.approx(0.7)

    with open_run(run, QUIET) as workspace:  # another day, without the device
        verify(workspace, read_policy(workspace))
        with pytest.raises(UserError, match="its engines are built on the device"):
            build(workspace, read_policy(workspace))
    assert read(run / "run.json")["address"] == ORIN, "a command that times nothing says nothing of it"
    with open_run(run, QUIET, device=""):
        assert read(run / "run.json")["address"] == ""


def test_what_is_measured_again_is_measured_anew_for_the_limit_of_the_budget(tmp_path, board):
    limit = Budget.from_text("latency=0.7005x").limit("latency")
    with open_run(tmp_path / "run", QUIET, settings("jetson-orin", "w8a8,fp16"), device=ORIN) as workspace:
        policy = workspace.space.uniform(Format.from_text("fp16")).with_format("second", Format.from_text("w8a8"))
        write_policy(workspace, policy, Budget((limit,)))
        export(workspace, policy)
        build(workspace, policy)
        once, twice = measure(workspace, policy, limit=limit), measure_again(workspace, policy, [2])
        assert (once.turn, twice.turn) == (0, 3)
        assert once.rounds == twice.rounds == 45, "a weaker interval would take the place of a better one"
        assert [(each.batch, each.seed) for each in board.experiments[3:]] == [(1, 3), (1, 4), (1, 5), (2, 0)]
        told = measure(workspace, policy, limit=limit)
        assert [each.seed for each in board.experiments[7:]] == [3, 4, 5], "which a device answers from what it knows"
        assert (told.turn, told.measurement) == (3, twice.measurement)


class Keeping(Board):
    """A board that keeps the plans that it has measured."""

    def measure(self, experiment: Experiment, announce: object = None) -> list[Result]:
        results = super().measure(experiment, announce)
        return [
            msgspec.structs.replace(result, plan_sha256=sha256(plan_of(result.name)).hexdigest()) for result in results
        ]

    def fetch_engine(self, result: Result, directory: Path) -> ProductFile | None:
        write_product_of(directory, result.name, content=plan_of(result.name))
        return find_product(directory)


def plan_of(name: str) -> bytes:
    return f"the plan of {name}".encode()


def test_the_plan_that_was_measured_comes_into_the_run_and_goes_with_its_policy(tmp_path, monkeypatch):
    board = Keeping(FASTER)
    monkeypatch.setattr("deploy.run.opening.device_from_address", lambda _address, _directory: board)
    run = tmp_path / "run"
    product, plan = run / "engine.jetson-orin", run / "engine.jetson-orin.sm87.plan"
    with open_run(run, QUIET, settings("jetson-orin", "w8a8,fp16"), device=ORIN) as workspace:
        policy = workspace.space.uniform(Format.from_text("w8a8"))
        model = export(workspace, policy)
        build(workspace, policy)
        measure(workspace, policy)
        content = plan_of(model_sha256(model)[:16])
        assert plan.read_bytes() == (product / "engine.plan").read_bytes() == content
        built = read(run / "build.json")
        assert (built["built_on"], list(built["engines"])) == ("a board", [plan.name])
        row = built["engines"][plan.name]
        assert (row["sha256"], row["size_bytes"]) == (sha256(content).hexdigest(), len(content))
        assert row["versions"] == {"tensorrt": "10.3.0"}
        exported = export_qdq(workspace, policy)
        assert exported.measured == f"trtexec --loadEngine={product}/engine.plan"
        assert f"--timingCacheFile={product}/timing.cache" in exported.build[0]

        board.fetch_engine = lambda _result, _directory: None  # the plan is where it was: nobody is asked for it
        measure(workspace, policy)
        assert product.is_dir()
        (product / "engine.plan").unlink()  # and now it is nowhere
        measure(workspace, policy)
        assert not product.exists()
        assert not plan.exists()
        assert export_qdq(workspace, policy).measured is None

        write_product_of(product, "f" * 16)
        plan.write_bytes(b"a plan of another policy")
        build(workspace, policy)
        assert not product.exists()
        assert not plan.exists()


@needs_rtx
def test_the_plan_that_is_built_here_is_the_one_that_is_timed_here(tmp_path, monkeypatch):
    """TensorRT-RTX builds; the GPU is none, and the engine only tells the time."""
    gpu = FakeCuda()
    gpu.compute_capability = lambda: (8, 6)
    for place in ("backends.tensorrt.build", "runner.trt_open", "backends.tensorrt.backend"):
        monkeypatch.setattr(f"deploy.{place}.open_cuda", lambda: gpu)
    monkeypatch.setattr("deploy.backends.tensorrt.build.layers_of_plan", lambda _module, _plan: [])
    monkeypatch.setattr("deploy.runner.trt_open.TrtEngine", lambda *_arguments: Clock())
    run = tmp_path / "run"
    chosen = msgspec.structs.replace(settings("tensorrt-rtx", "w8a8,fp16"), compute_capabilities=("sm86",))
    with open_run(run, QUIET, chosen) as workspace:
        policy = workspace.space.uniform(Format.from_text("w8a8"))
        export(workspace, policy)
        before = build(workspace, policy)
        plans = sorted((run / "device").rglob("*.plan"))
        measure(workspace, policy)
        assert sorted((run / "device").rglob("cache/*.plan")) == plans, "nothing was built again"
        after = workspace.run.read(BuildFile)
    name = "engine.tensorrt-rtx.sm86.plan"
    assert after == before
    product = json.loads((run / "engine.tensorrt-rtx" / "engine.json").read_text())
    content = (run / name).read_bytes()
    assert (run / "engine.tensorrt-rtx" / "engine.plan").read_bytes() == content
    assert product["plan_sha256"] == sha256(content).hexdigest() == after.engines[name].sha256
    assert (product["settings"]["compute_capability"], product["gpu"]["sm"]) == ("sm86", "sm86")
    assert [tensor["shape"] for tensor in product["inputs"]] == [[1, 1, 6, 6]]


class Clock:
    """An engine that only tells the time."""

    clock = "a clock"

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def time(self, _repeats: int) -> float:
        return 1.0 + next(self._ticks) % 7 / 1000

    def run(self) -> None:
        pass

    def layers(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_plan_for_another_gpu_than_the_target_gets_no_engines_name(tmp_path, monkeypatch):
    """The device is another one than the target says: the plan is handed over, and said to be for its GPU."""
    board, said = Keeping(FASTER), []

    def fetch(result, directory):
        write_product_of(directory, result.name, content=plan_of(result.name), gpu=Gpu("RTX A6000", "sm86"))
        return find_product(directory)

    board.fetch_engine = fetch
    monkeypatch.setattr("deploy.run.opening.device_from_address", lambda _address, _directory: board)
    monkeypatch.setattr(Progress, "warn", lambda _self, line: said.append(line))
    run = tmp_path / "run"
    with open_run(run, QUIET, settings("jetson-orin", "w8a8,fp16"), device=ORIN) as workspace:
        policy = workspace.space.uniform(workspace.space.reference)
        export(workspace, policy)
        build(workspace, policy)
        measure(workspace, policy)
    assert list(run.glob("*.plan")) == []
    assert (run / "engine.jetson-orin" / "engine.plan").is_file()
    assert [line for line in said if "is for RTX A6000 sm86, and the run's engines are for sm87" in line]


def check_experiment(experiment: Experiment) -> None:
    """What a device needs: the runtime builds with its usual settings, for its own GPU, graphs of the run's batch
    size.
    """
    assert experiment.runtime == "tensorrt"
    for candidate in (experiment.float_, *experiment.candidates):
        assert candidate.settings == {}
        shape = onnx.load(candidate.model).graph.input[0].type.tensor_type.shape.dim
        assert [dimension.dim_value for dimension in shape] == [1, 1, 6, 6]
    assert experiment.inputs["x"].shape == (1, 1, 6, 6)


def test_a_provider_that_is_missing_here_is_that_of_the_device(tmp_path, board):
    with open_run(tmp_path / "cuda", QUIET, settings("ort-tensorrt", "w8a8,fp16"), device=ORIN) as workspace:
        assert workspace.builds_on_device
        assert workspace.not_measurable is None
    with open_run(tmp_path / "cpu", QUIET, settings("ort-cpu", "w8a8,fp32"), device=ORIN) as workspace:
        assert not workspace.builds_on_device
    with open_run(tmp_path / "here", QUIET, settings("ort-tensorrt", "w8a8,fp16")) as workspace:
        assert not workspace.builds_on_device
        assert workspace.not_measurable.startswith("this onnxruntime is built without TensorrtExecutionProvider")


@needs_rtx
def test_a_build_that_was_stopped_repeats_no_plan(tmp_path):
    run, target = tmp_path / "run", settings("tensorrt-rtx", "w8a8,fp16")
    run_all(run, target, "size=0.6x", QUIET)
    names = ["engine.tensorrt-rtx.sm86.plan", "engine.float.sm86.plan"]
    plans = {name: (run / name).read_bytes() for name in names}
    assert not any(
        engine["from_cache"] for name, engine in read(run / "build.json")["engines"].items() if name == names[0]
    )
    for name in names:
        (run / name).unlink()
    with open_run(run, QUIET) as workspace:
        record = build(workspace, read_policy(workspace))
    assert all(engine.from_cache for engine in record.engines.values())
    assert {name: (run / name).read_bytes() for name in names} == plans
    assert {kernel.agrees for kernel in record.kernels.values()} == {True}
