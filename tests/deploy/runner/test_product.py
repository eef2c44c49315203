"""The directory of a plan that was measured, and the two programs in it, which are run on stand-ins for CUDA and
TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from deploy.runner import product as product_module
from deploy.runner.product import write_product
from deploy.runner.product_examples import example_programs
from tests.deploy.measured_plans import keep_measured_plan

STAND_INS = Path(__file__).parent / "stand_ins"
NAME = "0123456789abcdef"
MACHINE = "Orin (MAXN), Linux aarch64"
COMPILER = shutil.which("g++") or shutil.which("c++")
HEADERS = next((
    folder
    for folder in (os.environ.get("TENSORRT_INCLUDE"), "/usr/include", "/usr/include/x86_64-linux-gnu",
                   "/usr/include/aarch64-linux-gnu", "/usr/local/tensorrt/include", "/usr/src/tensorrt/include")
    if folder and (Path(folder) / "NvInfer.h").is_file()
), None)  # fmt: skip
CUDA_HEADERS = os.environ.get("CUDA_INCLUDE", "/usr/local/cuda/include")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")


@pytest.fixture
def product(tmp_path) -> Path:
    made = write_product(tmp_path, keep_measured_plan(tmp_path, NAME), MACHINE)
    assert made == tmp_path / "engines" / NAME
    return made


def test_it_holds_the_plan_that_was_measured_and_what_belongs_to_it(product):
    files = {file.name: file.read_bytes() for file in product.iterdir()}
    assert set(files) == {"engine.plan", "engine.json", "build.log", "timing.cache", "run_engine.py", "run_engine.cpp"}
    assert (files["engine.plan"], files["timing.cache"]) == (b"plan", b"times")
    log = files["build.log"].decode()
    assert log.splitlines() == ["tensorrt 10.3.0, 12.5 s, STRONGLY_TYPED", "WARNING: slow ", "INFO: builds"]
    about = json.loads(files["engine.json"])
    assert about["plan_sha256"] == hashlib.sha256(b"plan").hexdigest()
    assert about["gpu"] == {"name": "Orin", "sm": "sm87", "sm_count": 16, "power_mode": "MAXN"}
    assert (about["machine"], about["runtime"], about["version"], about["onnx_sha256"]) == (
        MACHINE,
        "tensorrt",
        "10.3.0",
        NAME * 4,
    )
    assert about["inputs"] == [{"name": "x", "dtype": "float32", "shape": [2, 3]}]
    assert about["outputs"] == [{"name": "y", "dtype": "float32", "shape": [2, 3]}]
    assert about["measured"]["engine_ms"] == 1.5
    assert about["warnings"] == ["slow"]
    assert about["files"] == {
        name: {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
        if name != "engine.json"
    }


def test_another_plan_takes_its_place_at_once(product, tmp_path):
    write_product(tmp_path, keep_measured_plan(tmp_path, NAME, content=b"other"), MACHINE)
    assert (product / "engine.plan").read_bytes() == b"other"
    assert [entry.name for entry in product.parent.iterdir()] == [NAME]


def test_what_cannot_be_written_leaves_the_one_before(product, tmp_path, monkeypatch):
    result = keep_measured_plan(tmp_path, NAME, content=b"other")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(product_module, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        write_product(tmp_path, result, MACHINE)
    assert (product / "engine.plan").read_bytes() == b"plan"
    assert [entry.name for entry in product.parent.iterdir()] == [NAME]


def test_a_plan_that_is_gone_and_a_runtime_without_plans(tmp_path):
    result = keep_measured_plan(tmp_path, NAME)
    assert write_product(tmp_path, {**result, "plan_sha256": None}, MACHINE) is None
    with pytest.raises(FileNotFoundError, match="no longer has the plan"):
        write_product(tmp_path, {**result, "plan_sha256": "0" * 64}, MACHINE)


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refused(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(product_module.os, "link", refused)
    made = write_product(tmp_path, keep_measured_plan(tmp_path, NAME), MACHINE)
    assert (made / "engine.plan").read_bytes() == b"plan"


FAKE_TENSORRT = dedent("""\
    import ctypes
    from types import SimpleNamespace


    class Context:
        def __init__(self, strategy="STATIC"):
            assert strategy == ("STATIC" if __name__ == "tensorrt" else "lent")
            self.addresses, self.memory = {}, strategy == "STATIC"

        def set_device_memory(self, memory, size):
            self.memory = memory > 0 and size == 64

        def set_tensor_address(self, name, address):
            self.addresses[name] = address

        def set_input_shape(self, name, shape):
            assert (name, tuple(shape)) == ("x", (2, 3))
            return True

        def execute_async_v3(self, stream):
            x, y = (((ctypes.c_float * 6).from_address(self.addresses[name])) for name in "xy")
            for index in range(6):
                y[index] = 2 * x[index] + 1
            return bool(stream) and self.memory


    class Logger:
        WARNING = 2

        def __init__(self, severity):
            assert severity == self.WARNING


    class Runtime:
        def __init__(self, logger):
            assert isinstance(logger, Logger)

        def deserialize_cuda_engine(self, plan):
            made = SimpleNamespace(create_execution_context=Context, device_memory_size_v2=64)
            return made if plan == b"plan" else None


    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="lent")
    """)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """A folder with a library that is called as CUDA's driver is."""
    folder = tmp_path_factory.mktemp("driver")
    if COMPILER is None:
        pytest.skip("no C compiler is installed")
    library = folder / "libcuda.so.1"
    subprocess.run([COMPILER, "-x", "c", "-shared", "-fPIC", "-o", library, STAND_INS / "libcuda.c"], check=True)
    return folder


@pytest.mark.parametrize(("runtime", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_the_python_program_loads_and_runs_the_plan(tmp_path, driver, runtime, module):
    product = write_product(tmp_path, keep_measured_plan(tmp_path, NAME, runtime), MACHINE)
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / f"{module}.py").write_text(FAKE_TENSORRT)
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(driver)}
    command = [sys.executable, product / "run_engine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("y float32 (2, 3) [1. 1. 1. 1. 1. 1.]\n", "")
    (product / "engine.plan").write_bytes(b"another")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the plan is for ")


@needs_compiler
def test_the_cpp_program_loads_and_runs_the_plan(product):
    compiled = product / "run_engine"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-delete-non-virtual-dtor"]
    subprocess.run(
        [COMPILER, "-std=c++17", *warnings, f"-I{STAND_INS}", product / "run_engine.cpp", "-o", compiled], check=True
    )
    done = subprocess.run([compiled], cwd=product, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("y: 24 bytes 1 1 1 1 1 1\n", "", 0)
    (product / "other.plan").write_bytes(b"another")
    done = subprocess.run([compiled, "other.plan"], cwd=product, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: the plan is for another GPU or version: see engine.json\n")


@needs_compiler
def test_the_cpp_program_lends_a_plan_of_tensorrt_rtx_its_memory(tmp_path):
    source = tmp_path / "run_engine.cpp"
    source.write_text(example_programs("tensorrt-rtx")["run_engine.cpp"])
    command = [COMPILER, "-std=c++17", "-Wall", "-Werror", "-Wno-delete-non-virtual-dtor", f"-I{STAND_INS}", source]
    subprocess.run([*command, "-o", tmp_path / "run_engine"], check=True)
    (tmp_path / "engine.plan").write_bytes(b"plan")
    done = subprocess.run(["./run_engine"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("y: 24 bytes 1 1 1 1 1 1\n", 0)


@needs_compiler
@pytest.mark.skipif(
    HEADERS is None, reason="TensorRT's headers are not installed: name their folder in TENSORRT_INCLUDE"
)
def test_the_cpp_program_fits_nvidias_headers(tmp_path):
    if not (Path(CUDA_HEADERS) / "cuda_runtime_api.h").is_file():
        pytest.skip("CUDA's headers are not installed: name their folder in CUDA_INCLUDE")
    source = tmp_path / "run_engine.cpp"
    source.write_text(example_programs("tensorrt")["run_engine.cpp"])
    command = [
        COMPILER,
        "-std=c++17",
        "-fsyntax-only",
        f"-I{HEADERS}",
        f"-I{CUDA_HEADERS}",
        "-Wno-deprecated-declarations",
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
