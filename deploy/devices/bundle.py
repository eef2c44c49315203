"""Write an experiment into a directory that can be carried to a device, and read what comes back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from calib.errors import UserError
from calib.files.storage import read_record, replacing, write_bytes, write_record, writing
from deploy.devices.base import Candidate, Experiment
from deploy.devices.checks import check_measured, check_results, keys_of
from deploy.devices.messages import Asked, Bundle, DeviceResults, Model, Rounds, read_message
from deploy.devices.runner_zip import RUNNER_FILE, runner_zip
from deploy.lowering.onnx_files import copy_model, data_path, sha256
from deploy.runner.experiment import EXPERIMENT_FILE, RESULTS_FILE
from deploy.runner.hashes import sha256_of
from deploy.runner.product import ENGINES_DIRECTORY
from deploy.runner.trt_log import TRT_RUNTIMES

BUNDLE_FILE = "bundle.json"
_README = f"""\
1. Copy this directory to the device. It needs Python 3.10 or later with numpy and {{needs}}.
2. There: cd into the directory and run python3 {RUNNER_FILE}. It may be stopped and started again at any time.
3. Copy {RESULTS_FILE} back, and go on with: smpq feedback RUN {RESULTS_FILE}
{{engines}}"""
_ENGINES = f"""\
4. {ENGINES_DIRECTORY}/NAME/ holds each plan that was measured, with a description and programs that run it. \
smpq feedback says which to deploy.
"""


def write_bundle(experiment: Experiment, directory: Path) -> list[Path]:
    """Write models, inputs, `experiment.json`, `runner.pyz` and `README.txt`; returns all files that the device needs.

    Models and inputs that are there already are not written again, since their names are hashes. Raises UserError when
    a model is missing, or the directory cannot be written.
    """
    check_models(experiment)
    models = {candidate.name: f"{candidate.name}.onnx" for candidate in (experiment.float_, *experiment.candidates)}
    plans = TRT_RUNTIMES.get(experiment.runtime)
    needs, engines = (experiment.runtime, "") if plans is None else (plans.module, _ENGINES)
    with writing(directory):
        for candidate in (experiment.float_, *experiment.candidates):
            if not (directory / models[candidate.name]).is_file():
                copy_model(candidate.model, directory / models[candidate.name])
        write_experiment(experiment, directory, models, carried=True)
        write_bytes(directory / RUNNER_FILE, runner_zip())
        write_bytes(directory / "README.txt", _README.format(needs=needs, engines=engines).encode())
    names = [*models.values(), inputs_name(experiment), RUNNER_FILE, EXPERIMENT_FILE]
    return [file for name in names for file in (directory / name, data_path(directory / name)) if file.is_file()]


def write_experiment(
    experiment: Experiment, directory: Path, models: Mapping[str, str], *, carried: bool = False
) -> Asked:
    """Write the inputs and `experiment.json`, and return the latter.

    `models` holds the path of each model, relative to `directory`. Of models that are carried to a device the hashes
    are written, so that half a file is noticed there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    inputs = directory / inputs_name(experiment)
    if not inputs.is_file():
        _write_inputs(inputs, experiment.inputs)
    asked = asked_of(experiment, models, directory if carried else None)
    write_record(directory / EXPERIMENT_FILE, asked)
    return asked


def asked_of(experiment: Experiment, models: Mapping[str, str] | None = None, directory: Path | None = None) -> Asked:
    """Return the content of `experiment.json`; without `models` the files are called by the names of the candidates.

    With `directory` it has the hashes of the models there.
    """

    def model(candidate: Candidate) -> Model:
        file = f"{candidate.name}.onnx" if models is None else models[candidate.name]
        digest = sha256(directory / file) if directory is not None else None
        # tuples become lists, so that settings have the same hash here and on the device
        settings = json.loads(json.dumps(dict(candidate.settings), allow_nan=False))
        return Model(name=candidate.name, model=file, settings=settings, sha256=digest)

    protocol = experiment.protocol
    return Asked(
        runtime=experiment.runtime,
        label=experiment.label,
        fingerprint=experiment.fingerprint,
        batch=experiment.batch,
        protocol=Rounds(
            rounds=protocol.rounds,
            round_ms=float(protocol.round_ms),
            calls=protocol.calls,
            singles=protocol.singles,
            sets=protocol.sets,
            seconds=float(protocol.seconds),
        ),
        seed=experiment.seed,
        inputs=inputs_name(experiment),
        float_=model(experiment.float_),
        candidates=tuple(map(model, experiment.candidates)),
    )


def keep_asked(experiment: Experiment, directory: Path) -> None:
    """Note in a run's `directory` what a bundle asks for, against which its results are checked."""
    file, asked = directory / BUNDLE_FILE, asked_of(experiment)
    before = _read_bundle(file) if file.is_file() else None
    earlier = {*before.earlier, *keys_of(before.asked)} - set(keys_of(asked)) if before is not None else set()
    taken = before.taken if before is not None else ()
    write_record(file, Bundle(asked=asked, earlier=tuple(sorted(earlier)), taken=taken))


def note_taken(results: Path, directory: Path) -> None:
    """Note in a run's `directory` that a file of results was taken in."""
    file, digest = directory / BUNDLE_FILE, sha256_of(results)
    bundle = _read_bundle(file)
    if digest not in bundle.taken:
        write_record(file, msgspec.structs.replace(bundle, taken=(*bundle.taken, digest)))


def was_taken(results: Path, directory: Path) -> bool:
    """Whether a file of results was taken in as it is."""
    file = directory / BUNDLE_FILE
    return file.is_file() and sha256_of(results) in _read_bundle(file).taken


def _read_bundle(file: Path) -> Bundle:
    return read_record(
        file,
        Bundle,
        missing="write a bundle first with smpq bundle --budget",
        repair="delete it, and write the bundle again",
    )


def inputs_name(experiment: Experiment) -> str:
    """Name the file of the inputs by their content."""
    digest = hashlib.sha256()
    for name, array in sorted(experiment.inputs.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"inputs.{digest.hexdigest()[:16]}.npz"


def read_results(path: Path, directory: Path) -> DeviceResults:
    """Read a `measurements.json` that came back from a device, with the results of the last bundle.

    `directory` is where `keep_asked` has noted the bundle. Raises UserError when it is missing, damaged, of another
    version, contradicts what the bundle asked for, or itself, or holds a failure that is not the model's.
    """
    bundle = _read_bundle(directory / BUNDLE_FILE)
    found = read_message(
        path,
        DeviceResults,
        f"copy {RESULTS_FILE} back from the device",
        "copy it again, or measure the bundle again in a new directory",
    )
    try:
        results = check_results(found, bundle.asked, bundle.earlier)
        check_measured(results.values())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return msgspec.structs.replace(found, results=tuple(results.values()))


def check_models(experiment: Experiment) -> None:
    """Raise UserError when a model of the experiment is missing."""
    for candidate in (experiment.float_, *experiment.candidates):
        if not candidate.model.is_file():
            raise UserError(f"the model {candidate.model} is missing: run the step that exports it again")


def _write_inputs(file: Path, inputs: Mapping[str, np.ndarray]) -> None:
    with replacing(file) as unfinished:
        np.savez(unfinished, **inputs)  # type: ignore[arg-type] # an input may not be called allow_pickle
