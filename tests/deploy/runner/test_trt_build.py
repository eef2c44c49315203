"""Building, apart from the builder: settings, the timing cache, and which nodes an error names. The builder itself:
test_tensorrt.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import pytest

from deploy.runner.blame import nodes_named
from deploy.runner.errors import BuildError, DeviceError
from deploy.runner.gpu import Gpu
from deploy.runner.plan_cache import PlanTensor, find_plan_by_hash
from deploy.runner.trt_build import TrtSettings, build, for_gpu
from deploy.runner.trt_log import Message, TrtLog


def test_settings():
    assert TrtSettings.from_json("tensorrt", {}) == TrtSettings("tensorrt")
    settings = TrtSettings.from_json("tensorrt", {"batch_sizes": [1, 4, 8], "workspace_mb": 256})
    assert settings == TrtSettings("tensorrt", batch_sizes=(1, 4, 8), workspace_mb=256)
    with pytest.raises(DeviceError, match="tensorrt has no setting fp16"):
        TrtSettings.from_json("tensorrt", {"fp16": True})


@pytest.mark.parametrize(("text", "nodes"), [
    ("Could not find any implementation for node conv1 + relu1.", ("conv1", "relu1")),
    ("no implementation for node {ForeignNode[conv1/DQw...layer1.0.conv1]}", ("conv1/DQw", "layer1.0.conv1")),
    ("[layer1.0.conv1#1] failed", ("layer1.0.conv1#1",)),
    (("Internal Error (Could not find any implementation for node conv1 + relu1 + layer1.0.conv1. "
      "In computeCosts at optimizer.cpp:4048)"),
     ("conv1", "relu1", "layer1.0.conv1")),
    ("Could not find any implementation for node a.b due to insufficient workspace. See verbose log of memory",
     ("a.b",)),
    ("Could not find any implementation for node conv1 || layer1.0.conv1 [Convolution].", ("conv1", "layer1.0.conv1")),
    (("Could not find any implementation for node conv1/DQw + (Unnamed Layer* 14) [Shuffle] + conv1 + "
      "PWN(PWN(a.b), relu1)."),
     ("conv1", "conv1/DQw", "relu1", "a.b")),
    ("something else failed", ()),
    ("Error Code 1: Cuda Runtime (out of memory)", ()),
    ("requested amount of memory of the node could not be allocated", ()),
    ("no kernel for 'memory' and [of]", ("memory", "of")),
])  # fmt: skip
def test_nodes_named_in_an_error(text, nodes):
    names = ["conv1", "conv1/DQw", "relu1", "layer1.0.conv1", "layer1.0.conv1#1", "a.b", "memory", "of"]
    assert nodes_named(text, names) == nodes


def test_a_reason_is_one_line_without_what_a_missing_gpu_causes():
    messages = [
        Message("INFO", "builds"),
        Message(
            "ERROR", "Error Code 1: Myelin (no kernel)\nCUDA driver version is insufficient for CUDA runtime version"
        ),
        Message("INTERNAL_ERROR", "Error Code 1: Myelin (no kernel)"),
        Message("WARNING", "slow"),
    ]
    failed = TrtLog(None, messages).failed()
    assert failed.reason == "Error Code 1: Myelin (no kernel)"
    assert "builds" not in failed.log
    assert "WARNING: slow" in failed.log
    assert (
        TrtLog(None, messages[1:2]).failed(["CUDA driver version is insufficient"]).reason
        == "CUDA driver version is insufficient"
    )
    assert TrtLog(None, []).failed().reason == "the runtime gave no reason"
    assert TrtLog(None, []).failed(["a", "b", "a"], ["n", "n"]).nodes == ("n",)


class FakeCache:
    """A timing cache with the clocks that it was measured at; a build adds a time to it."""

    def __init__(self, clocks: str, times: int) -> None:
        self.clocks, self.times = clocks, times

    def serialize(self) -> bytes:
        return f"times {self.clocks} {self.times}".encode()


class FakeConfig:
    """What TensorRT's configuration does with timing caches.

    It reads none from other content, takes none that was measured with other clocks, and then has none.
    """

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self._cache: FakeCache | None = None

    def create_timing_cache(self, content: bytes) -> FakeCache | None:
        if not content:
            return FakeCache(self._gpu.clocks, 0)
        word, *rest = content.decode().split()
        return FakeCache(rest[0], int(rest[1])) if word == "times" else None

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        if cache.clocks != self._gpu.clocks and not ignore_mismatch:
            return False
        if self._gpu.takes_caches:
            self._cache = cache
        return self._gpu.takes_caches

    def get_timing_cache(self) -> FakeCache | None:
        return self._cache

    def get_flag(self, flag: str) -> bool:
        return flag == "tf32"


@dataclass
class FakeGpu:
    """A builder's surroundings: the GPU's clocks, and for each build the times that it began with and its
    configuration.
    """

    clocks: str = "fast"
    takes_caches: bool = True
    began_with: list[int | None] = field(default_factory=list)
    configs: list[FakeConfig] = field(default_factory=list)

    def module(self) -> ModuleType:
        """A module that parses anything and builds it into one plan."""
        module = ModuleType("fake_builder")
        members = {
            "__version__": "10.3.0",
            "ILogger": type("ILogger", (), {}),
            "Builder": lambda _logger: self,
            "OnnxParser": lambda _network, _logger: SimpleNamespace(parse_from_file=lambda _file: True),
            "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
            "ProfilingVerbosity": SimpleNamespace(DETAILED=2),
            "BuilderFlag": SimpleNamespace(__members__={"TF32": "tf32", "REFIT": "refit"}),
        }
        vars(module).update(members)
        return module

    def create_network(self, flags: int) -> SimpleNamespace:
        x, y = (
            SimpleNamespace(name=name, dtype=f"DataType.{kind}", shape=(1, 3))
            for name, kind in (("x", "FLOAT"), ("y", "HALF"))
        )
        return SimpleNamespace(num_inputs=1, num_outputs=1, num_layers=0, flags=flags,
                               get_input=[x].__getitem__, get_output=[y].__getitem__)  # fmt: skip

    def create_builder_config(self) -> FakeConfig:
        self.configs.append(FakeConfig(self))
        return self.configs[-1]

    def build_serialized_network(self, _network: object, config: FakeConfig) -> bytes:
        cache = config.get_timing_cache()
        self.began_with.append(cache.times if cache is not None else None)
        if cache is not None:
            cache.times += 1
        return b"plan"


ORIN = Gpu("Orin", "sm87", 16, "MAXN")
TENSORRT = TrtSettings("tensorrt")


@pytest.fixture
def models(tmp_path):
    files = [tmp_path / f"{name}.onnx" for name in "abcd"]
    for file in files:
        file.write_bytes(file.name.encode())
    return files


def test_a_tensorrt_without_strong_types_is_no_bug_of_ours(models):
    old = FakeGpu().module()
    old.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)
    with pytest.raises(DeviceError, match=r"fake_builder 10.3.0 is too old, .* install 10.3 or later"):
        build(old, models[0], TENSORRT, None, ORIN)


def test_the_timing_cache_is_handed_on_from_build_to_build(tmp_path, models):
    gpu, cache = FakeGpu(), tmp_path / "cache"
    module = gpu.module()
    first = build(module, models[0], TENSORRT, cache, ORIN)
    (kept,) = cache.glob("timing-*.cache")
    assert first.timing_cache_sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert first.flags == ("STRONGLY_TYPED", "TF32")
    build(module, models[1], TENSORRT, cache, ORIN)
    kept.write_bytes(b"damaged")
    build(module, models[2], TENSORRT, cache, ORIN)
    assert gpu.began_with == [0, 1, 0]
    assert kept.read_bytes() == b"times fast 1"
    assert build(module, models[0], TENSORRT, cache, ORIN).from_cache
    assert len(gpu.began_with) == 3


def test_a_timing_cache_that_the_builder_rejects_is_replaced(tmp_path, models):
    """The times of another clock: the builder says False, and has no cache unless it is given one."""
    gpu, cache = FakeGpu(), tmp_path / "cache"
    module = gpu.module()
    build(module, models[0], TENSORRT, cache, ORIN)
    gpu.clocks = "slow"
    second = build(module, models[1], TENSORRT, cache, ORIN)
    assert gpu.began_with == [0, 0]
    (kept,) = cache.glob("timing-*.cache")
    assert kept.read_bytes() == b"times slow 1"
    assert second.timing_cache_sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()


def test_a_rejected_timing_cache_is_not_the_reason_why_a_build_fails(tmp_path, models, monkeypatch):
    gpu, cache = FakeGpu(), tmp_path / "cache"
    module = gpu.module()
    build(module, models[0], TENSORRT, cache, ORIN)
    gpu.clocks = "slow"
    loggers = []
    monkeypatch.setattr(module, "Builder", lambda logger: loggers.append(logger) or gpu)
    reject = FakeConfig.set_timing_cache

    def set_timing_cache(config, timing, ignore_mismatch):
        taken = reject(config, timing, ignore_mismatch)
        if not taken:
            loggers[0].log("Severity.ERROR", "the timing cache is of another device")
        return taken

    def no_kernel(*_arguments):
        loggers[0].log("Severity.ERROR", "no implementation for node conv1")

    monkeypatch.setattr(FakeConfig, "set_timing_cache", set_timing_cache)
    monkeypatch.setattr(FakeGpu, "build_serialized_network", no_kernel)
    with pytest.raises(BuildError) as failed:
        build(module, models[1], TENSORRT, cache, ORIN)
    assert failed.value.reason == "no implementation for node conv1"
    assert "another device" in failed.value.log


def test_a_builder_that_takes_no_timing_cache_at_all_builds(tmp_path, models):
    gpu = FakeGpu(takes_caches=False)
    built = build(gpu.module(), models[0], TENSORRT, tmp_path / "cache", ORIN)
    assert (built.timing_cache_sha256, gpu.began_with) == (None, [None])
    assert not list((tmp_path / "cache").glob("timing-*.cache"))


@pytest.mark.parametrize("other", [
    replace(ORIN, power_mode="15W"), replace(ORIN, sm_count=8), replace(ORIN, name="Thor"), replace(ORIN, sm="sm110"),
    None,
])  # fmt: skip
def test_another_gpu_or_power_mode_has_plans_and_times_of_its_own(tmp_path, models, other):
    gpu, cache = FakeGpu(), tmp_path / "cache"
    module = gpu.module()
    build(module, models[0], TENSORRT, cache, ORIN)
    assert not build(module, models[0], TENSORRT, cache, other).from_cache
    assert len(list(cache.glob("timing-*.cache"))) == 2
    assert gpu.began_with == [0, 0]
    assert all(build(module, models[0], TENSORRT, cache, which).from_cache for which in (ORIN, other))


def test_kernels_are_timed_as_often_as_by_trtexec(tmp_path, models):
    gpu = FakeGpu()
    build(gpu.module(), models[0], TENSORRT, tmp_path / "cache", ORIN)
    build(gpu.module(), models[0], TrtSettings("tensorrt-rtx"), tmp_path / "cache", ORIN)
    timed, untimed = gpu.configs
    assert timed.avg_timing_iterations == 8
    assert not hasattr(untimed, "avg_timing_iterations")


def test_a_plan_comes_back_as_it_was_built(tmp_path, models):
    module, cache = FakeGpu().module(), tmp_path / "cache"
    first = build(module, models[0], TrtSettings("tensorrt", batch_sizes=(1, 2, 4)), cache, ORIN)
    assert first.inputs == (PlanTensor("x", "float32", (1, 3)),)
    assert first.outputs == (PlanTensor("y", "float16", (1, 3)),)
    again = build(module, models[0], TrtSettings("tensorrt", batch_sizes=(1, 2, 4)), cache, ORIN)
    assert replace(again, from_cache=False, origin=first.origin) == first
    assert again.origin.to_json() == first.origin.to_json()
    assert find_plan_by_hash(cache, first.sha256) == again
    (cache / f"{first.origin.key}.plan").write_bytes(b"other")
    assert find_plan_by_hash(cache, first.sha256) is None
    assert not build(module, models[0], TrtSettings("tensorrt", batch_sizes=(1, 2, 4)), cache, ORIN).from_cache


def test_rtx_builds_for_the_gpu_that_is_there_where_it_knows_that_one():
    rtx = TrtSettings("tensorrt-rtx")
    module = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__={"SM86": 1, "SM120": 2}))
    assert for_gpu(module, rtx, Gpu("RTX", "sm86")).compute_capability == "sm86"
    assert for_gpu(module, rtx, ORIN) == rtx
    asked = replace(rtx, compute_capability="sm120")
    assert for_gpu(module, asked, Gpu("RTX", "sm86")) == asked
    assert for_gpu(SimpleNamespace(), TENSORRT, ORIN) == TENSORRT


def test_weights_in_a_file_of_their_own_count(tmp_path):
    gpu, model = FakeGpu(), tmp_path / "model.onnx"
    model.write_bytes(b"graph")
    for weights in (b"one", b"two", b"two"):
        (tmp_path / "model.onnx.data").write_bytes(weights)
        build(gpu.module(), model, TrtSettings("tensorrt-rtx"), tmp_path / "cache")
    assert len(gpu.began_with) == 2
