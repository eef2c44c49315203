"""The real CUDA and TensorRT providers, over libraries that compute nothing: they take our options and the graphs that
we lower.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy.backends.onnxruntime import session_settings
from deploy.targets.target import target_from_name
from tests.deploy.networks import constants, mlp, nodes, quantisers
from tests.nvidia import installed
from tests.nvidia.stubs import make_stubs

ROOT = Path(__file__).resolve().parents[2]
NOT_CLAIMED = "No graph will run on TensorRT execution provider"  # of the stub, whose parser supports nothing
DRIVER = "libcuda.so.1"


@dataclass(frozen=True)
class Place:
    """A folder that has the package onnxruntime of onnxruntime-gpu, and one with the libraries that it links."""

    packages: Path
    stubs: Path


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    packages, stubs = installed.providers(), tmp_path_factory.mktemp("stubs")
    capi = packages / "onnxruntime" / "capi"
    make_stubs([capi / f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")], stubs)
    return Place(packages, stubs)


def job(folder: Path, target: str, text: str, **changes: Any) -> list[Any]:
    """A network, lowered to one format for a target, as a device gets it."""
    exported = mlp()
    model = exported.lower(exported.formats(text), target, folder).path.rename(folder / f"{target}.{text}.onnx")
    entry = onnx.load(str(model), load_external_data=False).graph.input[0]
    settings = session_settings(model, target_from_name(target).providers)
    shape = [size.dim_value or 2 for size in entry.type.tensor_type.shape.dim]
    return [str(model), {**settings, "input": entry.name, **changes}, str(folder / "cache"), shape]


def opened(
    jobs: list[list[Any]], packages: Path, *libraries: Path, **environment: str
) -> tuple[list[dict[str, Any]], str]:
    """What became of the jobs in a process that finds its packages and libraries there; and what ONNX Runtime wrote."""
    variables = {
        **os.environ,
        "PYTHONPATH": f"{packages}:{ROOT}",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        **environment,
    }
    command = [sys.executable, str(Path(__file__).with_name("open_engines.py")), json.dumps(jobs)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_sessions_of_our_settings(place, tmp_path):
    """Bar: sessions are made with our options and without a warning, and what is captured is launched as one graph."""
    jobs = [job(tmp_path, "ort-cuda", text) for text in ("fp16", "w4a16b16")]
    jobs += [job(tmp_path, "ort-tensorrt", text) for text in ("fp16", "w8a8")]
    results, written = opened(jobs, place.packages, place.stubs)
    assert not [line for line in written.splitlines() if "[W:" in line and NOT_CLAIMED not in line]
    for result in results[:2]:
        assert result["providers"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
        assert result["outputs"] == {"linear_2": [2, 10]}
        assert (result["clock"], result["launched"]) == ("wall clock, each call synchronised, CUDA graph", 1)
        assert (result["clock_left"], result["launched_left"]) == (
            "wall clock, each call synchronised, no CUDA graph",
            0,
        )
        assert (result["clock_again"], result["launched_again"]) == (result["clock"], 1)
    for result in results[2:]:
        assert result["providers"] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        options = result["options"]["TensorrtExecutionProvider"]
        switched = {name for name, value in options.items() if value == "1"}
        assert {"trt_fp16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_timing_cache_enable"} <= switched
        for name in ("trt_engine_cache_path", "trt_timing_cache_path"):
            assert Path(options[name]).parent == tmp_path / "cache"
            assert Path(options[name]).is_dir()
        # all nodes are the CUDA provider's, since the stub's parser supports none, so TensorRT's graph cannot be had
        assert (result["clock"], result["launched"]) == ("wall clock, each call synchronised, no CUDA graph", 0)
    first, second = (result["options"]["TensorrtExecutionProvider"]["trt_engine_cache_path"] for result in results[2:])
    assert first != second


def test_tensorrt_is_asked_about_the_graph_that_was_lowered(place, tmp_path):
    lowered = job(tmp_path, "ort-tensorrt", "w8a8")
    asked = tmp_path / "asked.onnx"
    opened([lowered], place.packages, place.stubs, STUB_PARSER_MODEL=str(asked))
    before, after = Path(lowered[0]), asked
    assert [(node.op_type, name) for name, node in nodes(before).items()] == [
        (node.op_type, name) for name, node in nodes(after).items()
    ]
    assert quantisers(before) == quantisers(after)
    ours, theirs = constants(before), constants(after)
    weights = [name for name, array in ours.items() if array.dtype == np.int8 and array.ndim > 1]
    assert len(weights) == 3
    for name in weights:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_what_cannot_be_captured_is_run_without_a_graph(place, tmp_path):
    ((result,), _) = opened([job(tmp_path, "ort-cuda", "fp16")], place.packages, place.stubs, STUB_NO_CAPTURE="1")
    assert (result["clock"], result["launched"]) == ("wall clock, each call synchronised, no CUDA graph", 0)
    assert result["outputs"] == {"linear_2": [2, 10]}


def test_the_real_provider_refuses_other_options(place, tmp_path):
    """What the test of our settings can tell."""
    options: list[dict[str, str]] = [{"trt_int8_enable": "1"}, {"trt_no_such_option": "True"}]
    wrong = [[["TensorrtExecutionProvider", each], "CUDAExecutionProvider"] for each in options]
    jobs = [job(tmp_path, "ort-tensorrt", "fp16", providers=each) for each in wrong]
    for result in opened(jobs, place.packages, place.stubs)[0]:
        assert result.get("error") == "DeviceError", result
        assert "refuses an option" in result["text"]


@pytest.mark.parametrize("error", ["35", "100"])
def test_a_driver_that_fails_is_no_fault_of_the_model(place, error, tmp_path):
    ((result,), _) = opened([job(tmp_path, "ort-cuda", "fp16")], place.packages, place.stubs, STUB_CUDA_ERROR=error)
    assert result.get("error") == "DeviceError", result
    assert "nvidia-smi" in result["text"]


def pip_installed(place: Place, folder: Path, tensorrt: str | None = "10.16.1") -> tuple[Path, Path]:
    """Packages as pip lays them: libraries in folders of their own, on no search path. Returns these, and the folder of
    the driver.
    """
    packages, driver = folder / "packages", folder / "driver"
    for name in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "tensorrt", "tensorrt_libs"):
        (packages / name).mkdir(parents=True)
    driver.mkdir()
    (packages / "onnxruntime").symlink_to(place.packages / "onnxruntime")
    for library in place.stubs.glob("lib*.so*"):
        if library.suffix in (".c", ".map"):
            continue
        kind = (
            "nvidia/cudnn/lib"
            if "cudnn" in library.name
            else "tensorrt_libs"
            if "libnv" in library.name
            else "nvidia/cu13/lib"
        )
        shutil.copy(library, driver if library.name == DRIVER else packages / kind)
    init = packages / "tensorrt" / "__init__.py"
    if tensorrt is None:
        shutil.rmtree(init.parent)
    else:
        loads = "".join(
            f"ctypes.CDLL({str(library)!r})\n"
            for library in sorted((packages / "tensorrt_libs").iterdir(), reverse=True)
        )
        init.write_text(
            f"import ctypes\n__version__ = {tensorrt!r}\n{loads if tensorrt.startswith('10') else ''}", "utf-8"
        )
    return packages, driver


def test_libraries_that_pip_installed_are_found(place, tmp_path):
    packages, driver = pip_installed(place, tmp_path)
    jobs = [job(tmp_path, target, "fp16") for target in ("ort-cuda", "ort-tensorrt")]
    results, _ = opened(jobs, packages, driver)
    assert [result.get("providers", result)[0] for result in results] == [
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
    ]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, r"pip install 'tensorrt-cu13>=10,<11'"),
        ("11.4.0", r"tensorrt 11.4.0 is installed.*pip install 'tensorrt-cu13>=10,<11'"),
    ],
)
def test_without_tensorrt_10_the_message_names_it(place, version, told, tmp_path):
    packages, driver = pip_installed(place, tmp_path, tensorrt=version)
    ((result,), _) = opened([job(tmp_path, "ort-tensorrt", "fp16")], packages, driver)
    assert result.get("error") == "DeviceError", result
    assert re.search(told, result["text"])


def test_without_cuda_the_message_names_its_package(place, tmp_path):
    ((result,), _) = opened([job(tmp_path, "ort-cuda", "fp16")], place.packages, tmp_path)
    assert result.get("error") == "DeviceError", result
    assert "libcublas" in result["text"]
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]==" in result["text"]


def test_without_a_driver_the_message_names_it(place, tmp_path):
    packages, _ = pip_installed(place, tmp_path)
    ((result,), _) = opened([job(tmp_path, "ort-cuda", "fp16")], packages, tmp_path / "no driver")
    assert result.get("error") == "DeviceError", result
    assert "the NVIDIA driver is not installed" in result["text"]
