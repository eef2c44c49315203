"""Building, apart from the builder: settings, the timing cache, and which nodes an error names. The builder itself: test_tensorrt.py."""

from __future__ import annotations

import hashlib
from types import ModuleType, SimpleNamespace

import pytest

from deploy.on_device.blame import nodes_named
from deploy.on_device.errors import DeviceError
from deploy.on_device.trt_build import TrtSettings, build, write_bytes
from deploy.on_device.trt_log import Message, TrtLog


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
    ("Internal Error (Could not find any implementation for node conv1 + relu1 + layer1.0.conv1. In computeCosts at optimizer.cpp:4048)",
     ("conv1", "relu1", "layer1.0.conv1")),
    ("Could not find any implementation for node a.b due to insufficient workspace. See verbose log of memory", ("a.b",)),
    ("Could not find any implementation for node conv1 || layer1.0.conv1 [Convolution].", ("conv1", "layer1.0.conv1")),
    ("Could not find any implementation for node conv1/DQw + (Unnamed Layer* 14) [Shuffle] + conv1 + PWN(PWN(a.b), relu1).",
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
        Message("ERROR", "Error Code 1: Myelin (no kernel)\nCUDA driver version is insufficient for CUDA runtime version"),
        Message("INTERNAL_ERROR", "Error Code 1: Myelin (no kernel)"),
        Message("WARNING", "slow"),
    ]
    failed = TrtLog(None, messages).failed()
    assert failed.reason == "Error Code 1: Myelin (no kernel)"
    assert "builds" not in failed.log
    assert "WARNING: slow" in failed.log
    assert (
        TrtLog(None, messages[1:2]).failed(["CUDA driver version is insufficient"]).reason == "CUDA driver version is insufficient"
    )
    assert TrtLog(None, []).failed().reason == "the runtime gave no reason"
    assert TrtLog(None, []).failed(["a", "b", "a"], ["n", "n"]).nodes == ("n",)


class FakeConfig:
    """Keeps a timing cache that says what it began with; contents without the right start cannot be read."""

    def __init__(self, read: list[bytes]) -> None:
        self._read = read

    def create_timing_cache(self, content: bytes):
        if content and not content.startswith(b"times"):
            return None
        self._read.append(content)
        return SimpleNamespace(serialize=lambda: b"times" + bytes(len(content)) + b"+")

    def set_timing_cache(self, cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache

    def get_flag(self, flag: str) -> bool:
        return flag == "tf32"


def fake_builder(read: list[bytes], built: list[str]) -> ModuleType:
    """Return a module that parses anything and builds it into one plan."""

    def build_serialized_network(_network, _config) -> bytes:
        built.append("built")
        return b"plan"

    builder = SimpleNamespace(
        create_network=lambda flags: SimpleNamespace(num_inputs=0, num_layers=0, flags=flags),
        create_builder_config=lambda: FakeConfig(read),
        build_serialized_network=build_serialized_network,
    )
    module = ModuleType("fake_builder")
    members = {
        "__version__": "10.3.0",
        "ILogger": type("ILogger", (), {}),
        "Builder": lambda _logger: builder,
        "OnnxParser": lambda _network, _logger: SimpleNamespace(parse_from_file=lambda _file: True),
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "ProfilingVerbosity": SimpleNamespace(DETAILED=2),
        "BuilderFlag": SimpleNamespace(__members__={"TF32": "tf32", "REFIT": "refit"}),
    }
    vars(module).update(members)
    return module


def test_the_timing_cache_is_handed_on_from_build_to_build(tmp_path):
    read: list[bytes] = []
    built: list[str] = []
    module, cache = fake_builder(read, built), tmp_path / "cache"
    files = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for file in files:
        file.write_bytes(file.name.encode())
    settings = TrtSettings("tensorrt")
    first = build(module, files[0], settings, cache, "Orin sm87")
    (kept,) = cache.glob("timing-*.cache")
    assert read == [b""]
    assert first.timing_cache_sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert first.flags == ("STRONGLY_TYPED", "TF32")
    content = kept.read_bytes()
    build(module, files[1], settings, cache, "Orin sm87")
    assert read == [b"", content]
    kept.write_bytes(b"damaged")
    build(module, files[1], TrtSettings("tensorrt", batch_sizes=(1, 2, 4)), cache, "Orin sm87")
    assert read == [b"", content, b""]
    build(module, files[1], settings, cache, "Thor sm110")  # another GPU: neither its times nor its plans
    assert len(list(cache.glob("timing-*.cache"))) == 2
    assert len(built) == 4
    assert build(module, files[0], settings, cache, "Orin sm87").from_cache
    assert len(built) == 4


def test_weights_in_a_file_of_their_own_count(tmp_path):
    built: list[str] = []
    module, model = fake_builder([], built), tmp_path / "model.onnx"
    model.write_bytes(b"graph")
    for weights in (b"one", b"two", b"two"):
        (tmp_path / "model.onnx.data").write_bytes(weights)
        build(module, model, TrtSettings("tensorrt-rtx"), tmp_path / "cache")
    assert len(built) == 2


def test_a_file_is_there_in_full_or_as_it_was(tmp_path):
    file = tmp_path / "new" / "file"
    write_bytes(file, b"one")
    with pytest.raises(TypeError):
        write_bytes(file, "not bytes")
    assert file.read_bytes() == b"one"
    assert list(file.parent.iterdir()) == [file]
