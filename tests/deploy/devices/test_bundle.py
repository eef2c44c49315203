"""Bundles: what is written, and what comes back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from calib.errors import UserError
from deploy.devices.base import Result
from deploy.devices.bundle import check_models, experiment_json, inputs_name, read_measurements, results_of, write_bundle
from deploy.on_device.main import run_experiment
from deploy.onnx_files import load_model, save_model, sha256
from tests.deploy.experiments import candidate, experiment


@pytest.fixture
def wanted(tmp_path):
    return experiment(tmp_path / "models", (4, 32))


@pytest.fixture
def measured(wanted, tmp_path):
    write_bundle(wanted, tmp_path / "bundle")
    run_experiment(tmp_path / "bundle", str)
    return tmp_path / "bundle" / "measurements.json"


def test_what_is_written(wanted, tmp_path):
    files = write_bundle(wanted, tmp_path / "bundle")
    names = [f"{c.name}.onnx" for c in (wanted.float_, *wanted.candidates)]
    assert [file.name for file in files] == [*names, inputs_name(wanted), "runner.py", "experiment.json"]
    assert sorted(file.name for file in (tmp_path / "bundle").iterdir()) == sorted([*(f.name for f in files), "README.txt"])
    for c in (wanted.float_, *wanted.candidates):
        assert (tmp_path / "bundle" / f"{c.name}.onnx").read_bytes() == c.model.read_bytes()
    with np.load(tmp_path / "bundle" / inputs_name(wanted)) as arrays:
        np.testing.assert_array_equal(arrays["x"], wanted.inputs["x"])
    assert len((tmp_path / "bundle" / "README.txt").read_text().splitlines()) == 3


def test_a_bundle_can_be_written_again(wanted, tmp_path):
    model, *_ = write_bundle(wanted, tmp_path / "bundle")
    before = model.stat().st_mtime_ns
    write_bundle(replace(wanted, candidates=wanted.candidates[:1]), tmp_path / "bundle")
    assert model.stat().st_mtime_ns == before
    assert len(json.loads((tmp_path / "bundle" / "experiment.json").read_text())["candidates"]) == 1


def test_weights_in_a_file_of_their_own_come_along(wanted, tmp_path):
    large = tmp_path / "large.onnx"
    save_model(load_model(wanted.candidates[0].model), large, largest_single_file=0)
    assert large.with_name("large.onnx.data").is_file()
    changed = replace(wanted, candidates=(candidate(large),))
    files = write_bundle(changed, tmp_path / "bundle")
    assert f"{sha256(large)[:16]}.onnx.data" in [file.name for file in files]
    (result,) = results_of(changed, run_experiment(tmp_path / "bundle", str)["results"])
    assert result is not None
    assert result.failed is None


def test_a_missing_model(wanted):
    wanted.candidates[1].model.unlink()
    with pytest.raises(UserError, match="is missing"):
        check_models(wanted)


def test_a_directory_that_cannot_be_written(wanted, tmp_path):
    (tmp_path / "bundle").write_text("a file where the directory should be")
    with pytest.raises(UserError, match="cannot be written"):
        write_bundle(wanted, tmp_path / "bundle")


def test_results_come_back_in_the_order_of_the_candidates(wanted, measured):
    results = read_measurements(measured, wanted.fingerprint).results
    turned = replace(wanted, candidates=wanted.candidates[::-1])
    assert [result.name for result in results_of(turned, results)] == [c.name for c in turned.candidates]
    assert results_of(replace(wanted, seed=1), results) == [None, None]


def test_a_result_reads_back(measured):
    for entry in json.loads(measured.read_text())["results"]:
        assert Result.from_json(entry).to_json() == entry


def test_tuples_in_settings_change_no_key(wanted, measured):
    settings = {**wanted.candidates[0].settings, "disabled_optimizers": ()}
    same = replace(wanted, candidates=(replace(wanted.candidates[0], settings=settings),))
    assert results_of(same, read_measurements(measured, wanted.fingerprint).results)[0] is not None


def test_inputs_are_named_by_their_content(wanted):
    other = replace(wanted, inputs={"x": wanted.inputs["x"] + 1})
    assert inputs_name(wanted) != inputs_name(other)
    assert experiment_json(wanted, {c.name: "" for c in (wanted.float_, *wanted.candidates)})["inputs"] == inputs_name(wanted)


def test_measurements_of_something_else(measured):
    with pytest.raises(UserError, match="other models or data"):
        read_measurements(measured, "f" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {**data, "schema": 2}, "schema 2"),
        (lambda data: {**data, "results": {}}, "results missing or of the wrong type"),
        (lambda data: {**data, "results": [1]}, "is no object"),
        (lambda data: {**data, "results": [{**data["results"][0], "ratio": "fast"}]}, "ratio is 'fast'"),
        (lambda data: {**data, "results": [{**data["results"][0], "ratio": None}]}, "ratio is None"),
        (lambda data: {**data, "results": [{"key": "a", "name": "b"}]}, "failed"),
        (lambda data: [data], "is no object"),
    ],
)
def test_damaged_measurements(wanted, measured, change, message):
    measured.write_text(json.dumps(change(json.loads(measured.read_text()))))
    with pytest.raises(UserError, match=message):
        read_measurements(measured, wanted.fingerprint)


def test_half_of_the_measurements(wanted, measured):
    measured.write_text(measured.read_text()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        read_measurements(measured, wanted.fingerprint)
    measured.unlink()
    with pytest.raises(UserError, match=r"copy measurements\.json back"):
        read_measurements(measured, wanted.fingerprint)
