"""Write an experiment into a directory that can be carried to a device, and read what comes back."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import UserError
from deploy.devices.base import Candidate, Experiment, Result
from deploy.devices.runner_file import runner_text
from deploy.on_device.errors import DeviceError
from deploy.on_device.experiment import (
    EXPERIMENT_FILE,
    MEASUREMENTS_FILE,
    SCHEMA,
    read_measurements_file,
    result_key,
    write_json,
)
from deploy.onnx_files import copy_model, data_path

RUNNER_FILE = "runner.py"
_README = f"""\
1. Copy this directory to the device. It needs Python 3.10 or later with numpy and {{needs}}.
2. There: cd into the directory and run python3 {RUNNER_FILE}. It may be stopped and started again at any time.
3. Copy {MEASUREMENTS_FILE} back, and go on with: smpq feedback RUN {MEASUREMENTS_FILE}
"""
_NEEDS = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt, and pycuda or cuda-python",
    "tensorrt-rtx": "tensorrt_rtx, and pycuda or cuda-python",
}


@dataclass(frozen=True)
class Measurements:
    """What a device has measured: the machine, its state before and after, versions by name, and the results."""

    fingerprint: str
    runtime: str
    versions: Mapping[str, str]
    machine: str
    state: Mapping[str, Any]
    results: tuple[Result, ...]


def write_bundle(experiment: Experiment, directory: Path) -> list[Path]:
    """Write models, inputs, `experiment.json`, `runner.py` and `README.txt`; returns all files that the device needs.

    Models and inputs that are there already are not written again, since their names are hashes. Raises UserError when a model is missing, or
    the directory cannot be written.
    """
    check_models(experiment)
    models = {candidate.name: f"{candidate.name}.onnx" for candidate in (experiment.float_, *experiment.candidates)}
    with writing(directory):
        write_experiment(experiment, directory, models)
        for candidate in (experiment.float_, *experiment.candidates):
            if not (directory / models[candidate.name]).is_file():
                copy_model(candidate.model, directory / models[candidate.name])
        _write(directory / RUNNER_FILE, runner_text())
        _write(directory / "README.txt", _README.format(needs=_NEEDS[experiment.runtime]))
    names = [*models.values(), inputs_name(experiment), RUNNER_FILE, EXPERIMENT_FILE]
    return [file for name in names for file in (directory / name, data_path(directory / name)) if file.is_file()]


def write_experiment(experiment: Experiment, directory: Path, models: Mapping[str, str]) -> dict[str, Any]:
    """Write the inputs and `experiment.json`, and return the latter; `models` holds the path of each model, relative to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    inputs = directory / inputs_name(experiment)
    if not inputs.is_file():
        _write_inputs(inputs, experiment.inputs)
    data = experiment_json(experiment, models)
    write_json(directory / EXPERIMENT_FILE, data)
    return data


def experiment_json(experiment: Experiment, models: Mapping[str, str]) -> dict[str, Any]:
    """Return the plain values of `experiment.json`."""

    def entry(candidate: Candidate) -> dict[str, Any]:
        return {"name": candidate.name, "model": models[candidate.name], "settings": dict(candidate.settings)}

    data = {
        "schema": SCHEMA,
        "runtime": experiment.runtime,
        "label": experiment.label,
        "fingerprint": experiment.fingerprint,
        "batch": experiment.batch,
        "protocol": asdict(experiment.protocol),
        "seed": experiment.seed,
        "inputs": inputs_name(experiment),
        "float": entry(experiment.float_),
        "candidates": [entry(candidate) for candidate in experiment.candidates],
    }
    return dict(json.loads(json.dumps(data)))  # tuples become lists, so that settings have the same hash here and on the device


def inputs_name(experiment: Experiment) -> str:
    """Name the file of the inputs by their content."""
    digest = hashlib.sha256()
    for name, array in sorted(experiment.inputs.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"inputs.{digest.hexdigest()[:16]}.npz"


def read_measurements(path: Path, fingerprint: str) -> Measurements:
    """Read a `measurements.json` that came back from a device.

    Raises UserError when it is missing, damaged, of another version, or was made of other models or data.
    """
    try:
        data = read_measurements_file(path)
    except DeviceError as error:
        raise UserError(str(error)) from error
    if data is None:
        raise UserError(f"{path} does not exist: copy {MEASUREMENTS_FILE} back from the device")
    if data["fingerprint"] != fingerprint:
        raise UserError(
            f"{path} was measured with other models or data (fingerprint {data['fingerprint'][:16]}, this run has {fingerprint[:16]}): "
            "write a bundle of this run and measure it"
        )
    results = tuple(Result.from_json(entry) for entry in data["results"])
    return Measurements(fingerprint, data["runtime"], data["versions"], data["machine"], data["state"], results)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn what the disk refuses into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error}): free some space, or name another directory") from error


def check_models(experiment: Experiment) -> None:
    """Raise UserError when a model of the experiment is missing."""
    for candidate in (experiment.float_, *experiment.candidates):
        if not candidate.model.is_file():
            raise UserError(f"the model {candidate.model} is missing: run the step that exports it again")


def results_of(experiment: Experiment, results: Iterable[Mapping[str, Any] | Result]) -> list[Result | None]:
    """Pick the result of each candidate, in their order; None for one that has none."""
    parsed = [entry if isinstance(entry, Result) else Result.from_json(entry) for entry in results]
    by_key = {result.key: result for result in parsed}
    names = {candidate.name: "" for candidate in (experiment.float_, *experiment.candidates)}
    data = experiment_json(experiment, names)
    return [by_key.get(result_key(data, entry)) for entry in data["candidates"]]


def _write_inputs(file: Path, inputs: Mapping[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as temporary:
        unfinished = Path(temporary) / file.name
        np.savez(unfinished, **inputs)  # type: ignore[arg-type] # an input may not be called allow_pickle
        unfinished.replace(file)


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
