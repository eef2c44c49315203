"""What a doctor makes of the facts of a machine: findings, what works, and mends."""

from __future__ import annotations

import dataclasses

import pytest

from deploy.doctor.facts import MachineProbe, NumpyProbe, OrtProbe, PycudaProbe, TrtProbe
from deploy.doctor.here import Requirement, here_findings
from deploy.doctor.patient import Patient
from deploy.doctor.text import doctor_lines
from deploy.doctor.works import works_of
from deploy.targets.target import target_from_name
from tests.deploy.doctor.facts_sample import (
    FACTS,
    GPU,
    NO_DRIVER,
    ORIN,
    ORT,
    changed,
    examined,
    packages,
    problems,
    with_probes,
    works,
)

PIP = "/usr/bin/py -m pip"
THERE = "ssh://me@box?python=/usr/bin/py"
ALL = (True, True, True)
SEES = "sed -i 's/include-system-site-packages = false/include-system-site-packages = true/' /home/me/venv/pyvenv.cfg"
JETSON = changed(FACTS, jetson=ORIN, architecture="aarch64")
NO_TRT = TrtProbe()


def test_a_machine_on_which_everything_works():
    record = examined()
    assert record.met
    assert problems(record) == []
    assert (record.mends, record.choices) == ((), ())
    assert set(works(record).values()) == {ALL}
    assert [examined(target=target).met for target in ("ort-cuda", "tensorrt-10.16", "ort-cpu", "simulate")] == [
        True
    ] * 4


@pytest.mark.parametrize(
    ("facts", "target", "text", "mends"),
    [
        (with_probes(numpy=NumpyProbe()), None, "there is none", (f"{PIP} install numpy",)),
        (
            changed(with_probes(numpy=NumpyProbe()), python=changed(FACTS.python, pip=False)),
            None, "there is none", ("/usr/bin/py -m ensurepip", f"{PIP} install numpy"),
        ),
        (
            changed(with_probes(numpy=NumpyProbe()), python=changed(FACTS.python, venv=False, managed=True)),
            None, "there is none",
            ("python3 -m venv --system-site-packages ~/smpq", "~/smpq/bin/python -m pip install numpy"),
        ),
        (changed(FACTS, room=changed(FACTS.room, disk_free=10**8)), None, "0.10 GB free", ("du -sh ~/.cache/*",)),
        (changed(JETSON, jetson=changed(ORIN, release="# R35 (release), REVISION: 4.1,")), None,
         "JetPack 5: its TensorRT is older", ("sdkmanager",)),
        (
            with_probes(cuda=changed(
                NO_DRIVER, library="/usr/lib/libcuda.so.1", trouble="answers X (words, code 803): restart")),
            None, "code 803", ("sudo reboot",),
        ),
        (
            with_probes(cuda=changed(
                NO_DRIVER, library="libcuda.so.1", trouble="it has no cuGraphLaunch: update the driver")),
            None, "update the driver", ("sudo ubuntu-drivers install",),
        ),
        (with_probes(cuda=NO_DRIVER), None, "install the driver", ("sudo ubuntu-drivers install",)),
        (
            changed(with_probes(cuda=NO_DRIVER), nvidia_devices=0),
            "ort-cuda", "no NVIDIA GPU here", ("smpq doctor --device ssh://user@host --target ort-cuda",),
        ),
        (
            with_probes(cuda=changed(FACTS.probes.cuda, gpus=(changed(GPU, trouble="CUDA_ERROR_OUT_OF_MEMORY"),))),
            None, "takes no work", ("nvidia-smi",),
        ),
        (FACTS, "jetson-orin", "is for sm87: take a target for sm89", ("smpq doctor --target tensorrt",)),
        (with_probes(tensorrt=NO_TRT), "tensorrt", "not installed", (f"{PIP} install tensorrt-cu13",)),
        (with_probes(JETSON, tensorrt=NO_TRT), "tensorrt", "not installed",
         ("sudo apt install python3-libnvinfer", SEES)),
        (
            changed(with_probes(tensorrt=NO_TRT),
                    packages=packages("tensorrt 10.3.0", place="/usr/lib/python3.10/dist-packages", importable=False)),
            "tensorrt", "which this Python does not see", (SEES,),
        ),
        (
            changed(with_probes(JETSON, tensorrt=changed(NO_TRT, trouble="libnvinfer.so.10: cannot open")),
                    packages=packages("tensorrt 10.3.0")),
            None, "does not load: libnvinfer.so.10",
            (f"{PIP} uninstall -y tensorrt", "sudo apt install --reinstall libnvinfer10 python3-libnvinfer", SEES),
        ),
        (with_probes(tensorrt=changed(FACTS.probes.tensorrt, version="8.6.1")), None, "10.3 or later is needed",
         (f"{PIP} install tensorrt-cu13",)),
        (
            changed(
                with_probes(cuda=changed(FACTS.probes.cuda, cuda_version=(12, 6)),
                            tensorrt=changed(FACTS.probes.tensorrt, builder=False)),
                packages=packages("tensorrt 10.16.0.72", "tensorrt-cu13 10.16.0.72"),
            ),
            None, "made for CUDA 13, and the driver is for CUDA 12.6",
            (f"{PIP} uninstall -y tensorrt tensorrt-cu13", f"{PIP} install tensorrt-cu12"),
        ),
        (
            changed(FACTS, packages=packages("tensorrt-cu13-libs 10.16.0", "tensorrt-cu13-bindings 11.4.0")),
            None, "several versions",
            (f"{PIP} uninstall -y tensorrt-cu13-libs tensorrt-cu13-bindings", f"{PIP} install tensorrt-cu13"),
        ),
        (with_probes(tensorrt_rtx=TrtProbe(trouble="it crashed with SIGSEGV")), None, "it crashed with SIGSEGV",
         (f"{PIP} install tensorrt-rtx",)),
        (
            changed(FACTS, packages=packages("onnxruntime 1.31.1", "onnxruntime-gpu 1.31.1")),
            None, "write the same files",
            (f"{PIP} uninstall -y onnxruntime onnxruntime-gpu", f"{PIP} install onnxruntime-gpu"),
        ),
        (
            with_probes(ort_cuda=changed(
                ORT, kept=False, ran=False, refused="libcudnn.so.9: cannot open shared object file")),
            None, "falls back to the CPU (libcudnn.so.9", (f"{PIP} install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'",),
        ),
        (
            with_probes(ort_tensorrt=changed(
                ORT, kept=False, ran=False, refused="libnvinfer.so.10: cannot open shared object file")),
            None, "libnvinfer.so.10", (f"{PIP} install 'tensorrt-cu13>=10,<11'",),
        ),
        (
            with_probes(ort_cuda=changed(ORT, available=("CPUExecutionProvider",), kept=False, ran=False)),
            "ort-cuda", "without CUDAExecutionProvider",
            (f"{PIP} uninstall -y onnxruntime", f"{PIP} install 'onnxruntime-gpu[cuda,cudnn]'"),
        ),
        (with_probes(ort_cpu=OrtProbe()), "ort-cpu", "not installed", (f"{PIP} install onnxruntime",)),
    ],
)  # fmt: skip
def test_a_problem_and_its_mend(facts, target, text, mends):
    record = examined(facts, target, address=THERE)
    (problem,) = problems(record)
    assert text in problem.text
    assert problem.mends == mends
    assert record.mends == mends
    shown = "\n".join(doctor_lines(record))
    assert all(f"\n  {mend}\n" in shown for mend in mends)


def test_onnxruntime_for_a_newer_cuda_than_the_driver():
    older = with_probes(
        cuda=changed(FACTS.probes.cuda, cuda_version=(12, 6)), ort_cuda=changed(ORT, kept=False, ran=False)
    )
    (problem,) = [
        each for each in problems(examined(older, "ort-cuda", address=THERE)) if "CUDAExecutionProvider" in each.text
    ]
    assert "is made for CUDA 13.0, and the driver is for CUDA 12.6" in problem.text
    assert problem.mends == (f"{PIP} install 'onnxruntime-gpu[cuda,cudnn]<1.27'",)


def test_what_a_jetpack_6_board_has_too_much_of():
    """cuda-python 13 beside a driver for CUDA 12.6: no problem of ours."""
    facts = with_probes(
        JETSON, cuda=changed(FACTS.probes.cuda, cuda_version=(12, 6), gpus=(changed(GPU, compute_capability=(8, 7)),))
    )
    facts = with_probes(
        facts, tensorrt=changed(FACTS.probes.tensorrt, version="10.3.0", cuda_major=12), tensorrt_rtx=TrtProbe()
    )
    record = examined(
        changed(facts, packages=packages("cuda-python 13.0.3")), "jetson-orin", address=THERE, python=(3, 10, 12)
    )
    assert record.met
    assert record.mends == ()
    assert f"{PIP} install 'cuda-python<13'" in record.choices
    (note,) = [finding for finding in record.findings if finding.state == "note" and finding.subject == "cuda-python"]
    assert "13.0.3 needs a driver for CUDA 13" in note.text
    newer = with_probes(facts, cuda=changed(facts.probes.cuda, cuda_version=(13, 0)))
    choices = examined(changed(newer, packages=packages("cuda-python 13.0.3")), address=THERE).choices
    assert not any("cuda-python" in choice for choice in choices)


@pytest.mark.parametrize(
    ("target", "version", "state"),
    [
        ("jetson-orin", "10.3.0", "note"),
        (None, "10.3.0", "note"),
        ("tensorrt-10.7", "10.3.0", "problem"),
        ("tensorrt-10.7", "10.7.0", None),
        ("jetson-orin-7.2", "10.16.2", None),
        ("ort-cpu", "10.3.0", None),
    ],
)
def test_int8_of_tensorrt_10_3_on_orin(target, version, state):
    """What the table says about the version that is there, and how the newer one is installed beside it."""
    orin = changed(GPU, compute_capability=(8, 7))
    facts = with_probes(
        JETSON,
        cuda=changed(FACTS.probes.cuda, gpus=(orin,)),
        tensorrt=changed(FACTS.probes.tensorrt, version=version),
        tensorrt_rtx=TrtProbe(),
    )
    record = examined(facts, target, address=THERE)
    told = [finding for finding in record.findings if "fails on some INT8 networks" in finding.text]
    assert [finding.state for finding in told] == ([state] if state else [])
    commands = record.mends if state == "problem" else record.choices
    assert any("TensorRT-10.7.0.23.l4t.aarch64-gnu" in command for command in commands) == bool(state)
    assert record.met


def test_a_runtime_that_the_doctor_does_not_know():
    other = dataclasses.replace(target_from_name("tensorrt-10.3"), runtime="another")
    (row,) = works_of(Patient(THERE, FACTS, other), (3, 12), None, other)
    assert row.build == row.measure == "smpq doctor does not look for another"


@pytest.mark.parametrize("facts", [None, FACTS])
def test_an_old_python(facts):
    record = examined(facts, "jetson-orin", address="ssh://me@orin", python=(3, 6, 9) if facts is None else (3, 8, 10))
    assert not record.met
    assert "3.10 or later is needed" in problems(record)[0].text
    assert "smpq doctor --device 'ssh://me@orin?python=/path/to/python3'" in record.mends
    assert not any("python3.11" in command for command in record.mends), "the old systems have no such package"
    assert works(record) == {"tensorrt": (True, False, False)}


def test_clocks():
    def clocks(**values):
        record = examined(changed(JETSON, jetson=changed(ORIN, **values)))
        return next(finding for finding in record.findings if finding.subject == "clocks")

    assert clocks().state == "ok"
    free = clocks(min_mhz=306.0)
    assert (free.state, free.mends) == ("note", ("sudo jetson_clocks",))
    assert "1300 of 1300 MHz, and may go down to 306" in free.text
    assert clocks(cur_mhz=306.0, min_mhz=None).state == "note"
    assert clocks(cur_mhz=None, min_mhz=None, max_mhz=None).state == "note"


def test_what_does_not_work_says_why():
    record = examined(
        with_probes(
            cuda=NO_DRIVER,
            tensorrt=NO_TRT,
            ort_cuda=OrtProbe(version="1", available=()),
            pycuda=PycudaProbe(trouble="x"),
        )
    )
    assert works(record) == {
        "ort-cpu": ALL,
        "ort-cuda": (True, False, False),
        "ort-tensorrt": ALL,  # as the probe says that it ran
        "tensorrt": (True, False, False),
        "tensorrt-rtx": (True, True, False),
    }
    assert record.met
    lines = doctor_lines(record)
    assert "  tensorrt-rtx  yes     yes    no       no GPU that works" in lines
    assert "  ort-cpu       yes     yes    yes" in lines
    assert lines[-1].startswith("ready: ")


def test_a_machine_that_times_nothing():
    nothing = with_probes(
        cuda=NO_DRIVER,
        tensorrt=NO_TRT,
        tensorrt_rtx=NO_TRT,
        ort_cpu=OrtProbe(),
        ort_cuda=OrtProbe(),
        ort_tensorrt=OrtProbe(),
    )
    record = examined(changed(nothing, nvidia_devices=0), address=THERE)
    assert not record.met
    assert doctor_lines(record)[-1].endswith(f"ask again: smpq doctor --device '{THERE}'")


def test_a_plan_is_built_here_only_by_the_version_of_the_target():
    facts = with_probes(cuda=changed(FACTS.probes.cuda, gpus=(changed(GPU, compute_capability=(8, 7)),)))
    assert "10.16.0.72 is here: build on the device" in examined(facts, "jetson-orin").works[0].build
    assert examined(facts, "jetson-orin", address=THERE).met, "a device builds with the TensorRT that it has"


def test_what_this_machine_needs():
    old = [
        Requirement("numpy", "1.26", "1.20"),
        Requirement("torch", None, None),
        Requirement("rich", "13.7", "13.7.1"),
    ]
    first, *_ = here_findings(old, None, over_ssh=False)
    assert (first.state, first.text) == ("problem", "numpy 1.20 (>=1.26 is needed), torch is missing")
    assert first.mends[0].endswith("-m pip install --upgrade 'numpy>=1.26' torch")


def test_what_a_device_says_cannot_change_the_terminal():
    facts = changed(
        with_probes(machine=MachineProbe(name="a\x1b[2Jboard")),
        python=changed(FACTS.python, executable="/py\u202e", prefix="/x'; rm -rf ~; '"),
    )
    facts = with_probes(facts, tensorrt=TrtProbe())
    record = examined(changed(facts, packages=packages("tensorrt 10.3.0", importable=False)), address=THERE)
    assert all(line.isprintable() for line in doctor_lines(record))
    assert any("'/x'\"'\"'; rm -rf ~; '\"'\"'/pyvenv.cfg'" in command for command in record.choices), "quoted"
