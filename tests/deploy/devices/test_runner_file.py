"""The one file that is copied to a device."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.devices import runner_file
from deploy.devices.bundle import keep_asked, read_results, write_bundle
from deploy.devices.runner_file import runner_text
from tests.deploy.experiments import broken_candidate, experiment

ONLY = ("numpy", "onnxruntime")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A virtual environment with numpy and onnxruntime: from the package index, or else of the files that are installed
    here.
    """
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=True, symlinks=True)
    python = directory / "bin" / "python"
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in ONLY]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "0", *wanted]
    try:
        installed = subprocess.run(install, capture_output=True, timeout=150, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        installed = False
    if not installed:
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
    command = [python, "runner.py", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_runs_with_numpy_and_onnxruntime_alone(bare_python, tmp_path):
    missing = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in ('torch', 'onnx', 'deploy', 'calib', 'smpq')))"
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
    (tmp_path / "runner.py").write_text(runner_text())
    done = run(tmp_path / "empty" / "bin" / "python", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Python has no module numpy here: install it, as with pip install numpy\n"


def test_its_text_is_readable():
    text = runner_text()
    tree = ast.parse(text, feature_version=(3, 10))
    lines = text.splitlines()
    assert "deploy.runner" in (ast.get_docstring(tree) or "")
    assert [line for line in lines if line.startswith("from __future__")] == ["from __future__ import annotations"]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(set(imports)) == len(imports)
    assert not [line for line in imports if "deploy" in line]
    sections = [line.split()[2] for line in lines if line.startswith("# ---- ")]
    assert sections == list(runner_file._MODULES)
    here = {file.stem for file in (Path(runner_file.__file__).parent.parent / "runner").glob("*.py")} - {"__init__"}
    assert {*sections, *runner_file._DOCTOR_MODULES} == here, (
        "every module is joined, to the runner or to what looks at a machine"
    )
    assert text.endswith("sys.exit(main())\n")
    assert max(len(line) for line in lines) <= 140


def test_the_text_is_the_same_program(tmp_path):
    """Joined, it measures the same experiment to the same keys as the modules do."""
    wanted = experiment(tmp_path / "models", (4,))
    write_bundle(wanted, tmp_path / "bundle")
    assert run(Path(sys.executable), tmp_path / "bundle").returncode == 0
    from deploy.runner.main import run_experiment

    lines: list[str] = []
    run_experiment(tmp_path / "bundle", lines.append)
    assert lines == ["1 of 1 candidates are measured already"]
    assert len(json.loads((tmp_path / "bundle" / "measurements.json").read_text())["results"]) == 1


def test_a_name_with_two_meanings_is_a_bug():
    trees = {
        "one": ast.parse("def open_engine(): ..."),
        "two": ast.parse("from typing import Any\nopen_engine: Any = 1"),
    }
    with pytest.raises(ValueError, match=r"open_engine is one\.open_engine and two\.open_engine"):
        runner_file._check_names(trees)
    runner_file._check_names({"one": trees["one"], "user": ast.parse("from deploy.runner.one import open_engine")})


def test_one_module_with_those_that_it_imports_runs_alone(tmp_path):
    """It names a machine before anything is copied there."""
    text = runner_file.source_of("state") + "\nprint(machine())\n"
    sections = [line.split()[2] for line in text.splitlines() if line.startswith("# ---- ")]
    assert sections == ["errors", "cuda_library", "nvml", "state"]
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=text, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
