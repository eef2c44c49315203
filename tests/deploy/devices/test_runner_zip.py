"""The one file that is copied to a device."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import deploy.runner
from deploy.devices.bundle import keep_asked, read_results, write_bundle
from deploy.devices.runner_zip import program_text, runner_zip
from deploy.runner.main import run_experiment
from deploy.runner.state import machine
from tests.deploy.experiments import broken_candidate, experiment

ROOT = Path(__file__).parents[3]
ONLY = ("numpy", "onnxruntime")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A virtual environment with the files of numpy and onnxruntime that are installed here, and with nothing else."""
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    link_packages(directory)
    works = subprocess.run([python, "-c", "import numpy, onnxruntime"], capture_output=True, text=True, check=False)
    if works.returncode != 0:
        pytest.skip(
            f"no environment with only numpy and onnxruntime can be made here: {works.stderr.strip().splitlines()[-1]}"
        )
    return python


def link_packages(environment: Path) -> None:
    (target,) = environment.glob("lib/python*/site-packages")
    for name in ONLY:
        for file in importlib.metadata.files(name) or ():
            top = Path(str(file)).parts[0]
            if top not in ("..", "__pycache__") and not (target / top).exists():
                (target / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)


def run(python: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "runner.pyz", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_runs_with_numpy_and_onnxruntime_alone(bare_python, tmp_path):
    missing = (
        "import importlib.util as u, sys; "
        "sys.exit(any(u.find_spec(n) for n in ('torch', 'onnx', 'deploy', 'calib', 'smpq')))"
    )
    assert subprocess.run([bare_python, "-I", "-c", missing], cwd=tmp_path, check=False).returncode == 0
    wanted = experiment(tmp_path / "models", (4, 32))
    wanted = replace(wanted, candidates=(*wanted.candidates, broken_candidate(tmp_path)))
    write_bundle(wanted, tmp_path / "bundle")
    keep_asked(wanted, tmp_path)
    done = run(bare_python, tmp_path / "bundle")
    assert (done.returncode, done.stderr) == (0, "")
    fast, slow, broken = read_results(tmp_path / "bundle" / "measurements.json", tmp_path).results
    assert fast.ratio < 1.0 < slow.ratio
    assert "Protobuf parsing failed" in broken.failed
    assert run(bare_python, tmp_path / "bundle").stdout == "3 of 3 candidates are measured already\n"
    assert len(run(bare_python, tmp_path / "bundle", "--list").stdout.splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_runtime_is_one_line(bare_python, tmp_path, runtime):
    write_bundle(replace(experiment(tmp_path / "models"), runtime=runtime), tmp_path / "bundle")
    done = run(bare_python, tmp_path / "bundle")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {runtime} is not installed")
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_numpy_is_one_line(tmp_path):
    venv.create(tmp_path / "empty", with_pip=False, symlinks=True)
    (tmp_path / "runner.pyz").write_bytes(runner_zip())
    done = run(tmp_path / "empty" / "bin" / "python", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Python has no module numpy here: install it, as with pip install numpy\n"


def test_it_holds_the_package_as_it_is(tmp_path):
    (tmp_path / "runner.pyz").write_bytes(runner_zip())
    with zipfile.ZipFile(tmp_path / "runner.pyz") as archive:
        archive.extractall(tmp_path)
    package = Path(deploy.runner.__file__).parent
    here = {file.name: file.read_text() for file in package.glob("*.py") if file.name != "__main__.py"}
    assert {file.name: file.read_text() for file in (tmp_path / "deploy/runner").iterdir()} == here
    assert (tmp_path / "__main__.py").read_text() == (package / "__main__.py").read_text()
    assert (tmp_path / "deploy/__init__.py").is_file()


def test_two_processes_write_the_same_bytes(tmp_path):
    """Those that ssh finds on the device are not copied again, wherever smpq is installed here."""
    shutil.copytree(ROOT / "deploy/runner", tmp_path / "deploy/runner", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("deploy/__init__.py", "deploy/devices/__init__.py", "deploy/devices/runner_zip.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    code = "import sys; from deploy.devices.runner_zip import runner_zip; sys.stdout.buffer.write(runner_zip())"
    variables = {"PYTHONPATH": str(tmp_path), "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, check=True)
    assert done.stdout == runner_zip()


def test_it_measures_what_the_package_measures(tmp_path):
    """To the same keys: nothing is left to measure."""
    wanted = experiment(tmp_path / "models", (4,))
    write_bundle(wanted, tmp_path / "bundle")
    assert run(Path(sys.executable), tmp_path / "bundle").returncode == 0
    lines: list[str] = []
    run_experiment(tmp_path / "bundle", lines.append)
    assert lines == ["1 of 1 candidates are measured already"]
    assert len(json.loads((tmp_path / "bundle" / "measurements.json").read_text())["results"]) == 1


def program(code: str, oldest: tuple[int, int], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as on a device whose temporary directory is `directory`/temporary."""
    (directory / "temporary").mkdir()
    (directory / "base64.py").write_text("raise ImportError('of the current directory')")
    text = program_text(code, oldest, "sys.exit('too old: %d' % sys.version_info[0])")
    done = subprocess.run(
        [sys.executable, "-", "argument"], input=text, cwd=directory, env={"TMPDIR": str(directory / "temporary")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not list((directory / "temporary").iterdir()), "nothing is left behind"
    return done


@pytest.mark.parametrize(("ending", "code"), [("", 0), ("; sys.exit(3)", 3), ("; 1 / 0", 1)])
def test_a_program_runs_from_the_archive_and_removes_it(tmp_path, ending, code):
    done = program(
        f"import deploy.runner.state as it; print(sys.argv[1], it.__file__, it.machine()){ending}", (3, 0), tmp_path
    )
    argument, file, name = done.stdout.split(maxsplit=2)
    assert (done.returncode, argument, name) == (code, "argument", f"{machine()}\n")
    assert file.startswith(str(tmp_path / "temporary"))
    assert file.endswith("runner.pyz/deploy/runner/state.py")


def test_a_python_that_is_too_old_for_a_program_says_so(tmp_path):
    done = program("1 / 0", (99, 0), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "too old: 3\n")
