"""The program that says what a device has, in environments that lack things."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.doctor.ask import doctor_program
from deploy.doctor.examine import judged
from deploy.doctor.facts import Answer
from deploy.doctor.text import doctor_lines
from deploy.runner import doctor_probes
from deploy.targets.target import target_from_name
from tests.deploy.doctor.machines import NO_LIBRARY, bare, jetpack6

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def orin(tmp_path_factory):
    machine = jetpack6(tmp_path_factory.mktemp("orin"))
    machine.package("onnxruntime", "1.31.1", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    machine.package("pycuda", "2025.1", "print('noise')\nVERSION_TEXT = '2025.1'\n")
    return machine.answer().facts


def test_its_problems_and_their_mends(orin):
    record = judged("ssh://me@orin", Answer(python=(3, 10, 12), facts=orin), target_from_name("jetson-orin"), [])
    text = "\n".join(doctor_lines(record))
    for words in (
        "tensorrt 10.3.0 is installed, and does not load: libnvinfer.so.10",
        "13.0.3 needs a driver for CUDA 13 (580 or later)",
        "Fake GPU, sm87",
        "540.4.0, for CUDA 12.6",
        "L4T 36.4.3, JetPack 6",
        "\nto mend on the device:\n  python3 -m ensurepip\n  python3 -m pip uninstall -y tensorrt\n",
        (
            "  sudo apt install --reinstall libnvinfer10 python3-libnvinfer\n"
            "  sed -i 's/include-system-site-packages = false/"
        ),
        "\nonly if you want it:\n  sudo jetson_clocks\n  python3 -m pip install 'cuda-python<13'\n",
        "not ready: what jetson-orin needs is not there",
    ):
        assert words in text


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return bare(tmp_path_factory.mktemp("bare")).answer().facts


def test_a_board(orin):
    jetson = orin.jetson
    assert (jetson.power_mode, jetson.cur_mhz, jetson.min_mhz, jetson.max_mhz) == ("MODE_30W", 1300.5, 306.0, 1300.5)
    assert "REVISION: 4.3" in jetson.release
    assert orin.driver == "540.4.0"
    assert orin.probes.machine.name.startswith("NVIDIA Jetson AGX Orin Developer Kit (MODE_30W)")
    assert (orin.room.memory_free, orin.room.memory_total) == (5801856 * 1024, 7801856 * 1024)
    assert orin.tools["trtexec"].endswith("usr/src/tensorrt/bin/trtexec")


def test_its_gpu_through_the_drivers_library(orin):
    cuda = orin.probes.cuda
    assert (cuda.trouble, cuda.cuda_version) == (None, (12, 6))
    assert cuda.library.endswith("libraries/libcuda.so.1")
    (gpu,) = cuda.gpus
    assert (gpu.name, gpu.sm, gpu.sm_count, gpu.l2_bytes) == ("Fake GPU", "sm87", 14, 4 << 20)
    assert (gpu.memory_free, gpu.memory_total, gpu.trouble) == (6 << 30, 8 << 30, None)
    assert gpu.uuid == "GPU-05152535-4555-6575-8595-a5b5c5d5e5f5"


def test_packages_that_python_sees_and_those_of_the_system(orin):
    found = {(package.name, package.version, package.importable) for package in orin.packages}
    assert {("cuda-python", "13.0.3", True), ("tensorrt", "10.3.0", True), ("tensorrt", "10.3.0", False)} <= found


def test_a_library_that_is_missing_and_one_that_crashes(orin):
    assert orin.probes.tensorrt.version is None
    assert orin.probes.tensorrt.trouble == NO_LIBRARY
    assert orin.probes.ort_cpu.trouble.startswith("it crashed with SIGSEGV")
    assert orin.probes.tensorrt_rtx.trouble is None
    assert orin.probes.numpy.version is not None


def test_what_a_library_prints_is_no_answer(orin):
    assert orin.probes.pycuda.version == "2025.1"
    assert "pycuda.driver" in orin.probes.pycuda.trouble


class FallenBack:
    """A session of ONNX Runtime that has left its provider out."""

    def __init__(self, model: bytes, providers: list[str]) -> None:
        assert model
        assert providers == ["CUDAExecutionProvider"]

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_provider_whose_library_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "capi").mkdir()
    for name in ("shared", "cuda"):
        (tmp_path / "capi" / f"libonnxruntime_providers_{name}.so").write_bytes(b"no library")
    module = SimpleNamespace(
        __version__="1.31.1", __file__=str(tmp_path / "__init__.py"), cuda_version="13.0", InferenceSession=FallenBack,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    found = doctor_probes._probe_ort("CUDAExecutionProvider")
    assert (found["version"], found["cuda_version"], found["kept"], found["ran"]) == ("1.31.1", "13.0", False, False)
    assert "libonnxruntime_providers_shared.so: " in found["refused"]
    assert found["trouble"] is None


def test_a_machine_with_nothing(nothing):
    assert nothing.jetson is None
    assert nothing.packages == ()
    assert nothing.python.venv
    assert not nothing.python.sees_system
    assert not nothing.python.pip
    assert "cannot open shared object file" in nothing.probes.cuda.trouble
    assert {probe.version for probe in (nothing.probes.numpy, nothing.probes.tensorrt, nothing.probes.ort_cpu)} == {
        None
    }


def probed(monkeypatch, code):
    monkeypatch.setattr(doctor_probes, "_START", code)
    return doctor_probes.run_probes(["numpy"], Path("/"))


def test_a_probe_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(doctor_probes, "PROBE_SECONDS", 0.3)
    found = probed(monkeypatch, "import time; time.sleep(60)")
    assert found == {"numpy": {"trouble": "it did not answer in 0.3 s"}}


def test_a_probe_that_crashes_when_it_ends_has_answered(monkeypatch):
    found = probed(
        monkeypatch,
        """import os, pathlib, sys; pathlib.Path(sys.argv[-1]).write_text('{"version": "1"}'); os.abort()""",
    )
    assert found == {"numpy": {"version": "1", "said": "it crashed with SIGABRT"}}


def test_a_probe_that_ends_without_an_answer(monkeypatch):
    found = probed(monkeypatch, "raise ValueError('broken')")
    assert found == {"numpy": {"trouble": "it ended with exit code 1: ValueError: broken"}}


def test_what_examines_a_machine_is_in_the_syntax_of_python_3_9():
    code = (
        "import sys, deploy.runner.doctor; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('deploy.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [Path(file) for file in done.stdout.split()]
    assert ROOT / "deploy/runner/doctor_probes.py" in files
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 9))


def test_a_python_that_is_too_old_for_the_program_says_so():
    old = doctor_program().replace("sys.version_info < (3, 9)", "sys.version_info < (99,)")
    assert old != doctor_program()
    done = subprocess.run([sys.executable, "-"], input=old, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"python": list(sys.version_info[:3]), "facts": None}
