"""Bundles: what is written, and what comes back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from calib.errors import UserError
from calib.files.storage import plain
from deploy.devices.bundle import asked_of, check_models, inputs_name, keep_asked, read_results, write_bundle
from deploy.devices.checks import keys_of
from deploy.lowering.onnx_files import load_model, save_model, sha256
from deploy.runner.errors import DeviceError
from deploy.runner.main import run_experiment
from tests.deploy.board import NO_FIGURES
from tests.deploy.experiments import candidate, experiment


@pytest.fixture
def wanted(tmp_path):
    return experiment(tmp_path / "models", (4, 32))


@pytest.fixture
def measured(wanted, tmp_path):
    write_bundle(wanted, tmp_path / "bundle")
    keep_asked(wanted, tmp_path)
    run_experiment(tmp_path / "bundle", str)
    return tmp_path / "bundle" / "measurements.json"


def test_what_is_written(wanted, tmp_path):
    files = write_bundle(wanted, tmp_path / "bundle")
    names = [f"{c.name}.onnx" for c in (wanted.float_, *wanted.candidates)]
    assert [file.name for file in files] == [*names, inputs_name(wanted), "runner.pyz", "experiment.json"]
    assert sorted(file.name for file in (tmp_path / "bundle").iterdir()) == sorted(
        [*(f.name for f in files), "README.txt"]
    )
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
    keep_asked(changed, tmp_path)
    run_experiment(tmp_path / "bundle", str)
    (result,) = read_results(tmp_path / "bundle" / "measurements.json", tmp_path).results
    assert result.failed is None
    data = tmp_path / "bundle" / f"{changed.candidates[0].name}.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    (tmp_path / "bundle" / "measurements.json").unlink()
    with pytest.raises(DeviceError, match="is not what was written: copy the whole directory again"):
        run_experiment(tmp_path / "bundle", str)


def test_a_missing_model(wanted):
    wanted.candidates[1].model.unlink()
    with pytest.raises(UserError, match="is missing"):
        check_models(wanted)


def test_a_directory_that_cannot_be_written(wanted, tmp_path):
    (tmp_path / "bundle").write_text("a file where the directory should be")
    with pytest.raises(UserError, match="cannot write"):
        write_bundle(wanted, tmp_path / "bundle")


def test_results_of_an_earlier_bundle_are_left_out(wanted, measured, tmp_path):
    """As when the next bundle is copied into the same directory of the device."""
    second = replace(wanted, candidates=wanted.candidates[1:])
    keep_asked(second, tmp_path)
    assert [result.name for result in read_results(measured, tmp_path).results] == [wanted.candidates[1].name]
    keep_asked(wanted, tmp_path)
    assert len(read_results(measured, tmp_path).results) == 2


def test_a_result_reads_back(measured, tmp_path):
    found = read_results(measured, tmp_path).results
    assert [plain(result) for result in found] == json.loads(measured.read_text())["results"]


def test_tuples_in_settings_change_no_key(wanted):
    settings = {**wanted.candidates[0].settings, "disabled_optimizers": ()}
    same = replace(wanted, candidates=(replace(wanted.candidates[0], settings=settings),))
    assert list(keys_of(asked_of(same))) == list(keys_of(asked_of(wanted)))[:1]


def test_inputs_are_named_by_their_content(wanted):
    other = replace(wanted, inputs={"x": wanted.inputs["x"] + 1})
    assert inputs_name(wanted) != inputs_name(other)
    assert asked_of(wanted).inputs == inputs_name(wanted)


def changed(file, change):
    data = json.loads(file.read_text())
    file.write_text(json.dumps(change(data) or data))


def first(**changes):
    return lambda data: data["results"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {**data, "schema": 3}, "schema 3, this version of smpq reads schema 4"),
        (lambda data: {**data, "results": {}}, r"expected `array`, got `object` - at `\$.results`"),
        (lambda data: {**data, "results": [1]}, r"expected `object`, got `int` - at `\$.results\[0\]`"),
        (first(ratio="fast"), r"got `str` - at `\$.results\[0\].ratio`"),
        (first(ratio=None), "has all figures"),
        (first(ratio=-1), r"> 0.* - at `\$.results\[0\].ratio`"),
        (first(failed="no kernel"), "has a reason and a cause"),
        (first(failed="no kernel", cause="refused"), "has no figures"),
        (first(nodes=["conv"]), "blames no nodes"),
        (first(colour="red"), "unknown field `colour`"),
        (lambda data: {**data, "machine": "board\x1b[31m"}, "characters that cannot be printed"),
        (lambda data: [data], "expected `object`, got `array`"),
    ],
)
def test_damaged_measurements(measured, tmp_path, change, message):
    changed(measured, change)
    with pytest.raises(UserError, match=message):
        read_results(measured, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {**data, "fingerprint": "f" * 64}, "other models or data"),
        (lambda data: {**data, "runtime": "tensorrt"}, "measured with tensorrt, and onnxruntime was asked for"),
        (lambda data: data["results"].append(data["results"][0]), "it comes twice"),
        (first(batch=2), "its batch size is 2, and 1 was asked for"),
        (first(key="0" * 16), "its key is 0000000000000000, and that of what was asked for is"),
        (first(key="0" * 16, name="1" * 16), "1111111111111111 contradicts .* it is not in the last bundle"),
        (first(name="1" * 16), "its key is that of the model"),
        (first(ratio=0.5), "ratio is 0.5, and .* is the median of the ratios of its rounds"),
        (first(engine_ms=0.5), "engine_ms is 0.5, and .* is the median of its rounds"),
        (first(float_ms=0.5), "float_ms is 0.5, and .* is the median of its rounds"),
        (first(throughput=0.5), "throughput is 0.5, and .* is what its batch size and engine_ms give"),
        (first(ratio_interval=[2.6, 0.4]), "interval of its ratio is 2.6 to 0.4, and the ratio is"),
        (first(ratio_interval=[1e-9, 1e9]), "its rounds put the end 1e-09 between"),
        (first(slowdown=1e6), "its rounds put the end"),
        (first(rounds_ms=[1.0], float_rounds_ms=[1.0]), "it has 1 rounds, and 5 were asked for"),
        (first(float_rounds_ms=[1.0]), "it has 5 rounds, and 1 of the float engine"),
    ],
)
def test_contradictions_name_themselves(measured, tmp_path, change, message):
    changed(measured, change)
    with pytest.raises(UserError, match=message):
        read_results(measured, tmp_path)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("transient", r"failed over the engine \w+, for the moment \(out of memory\)"),
        ("internal", "please report this"),
    ],
)
def test_a_failure_that_is_not_the_models_is_no_result(measured, tmp_path, cause, message):
    changed(
        measured, first(**NO_FIGURES, rounds_ms=[], float_rounds_ms=[], notes=[], failed="out of memory", cause=cause)
    )
    with pytest.raises(UserError, match=message):
        read_results(measured, tmp_path)


def test_a_file_that_is_no_measurements(measured, tmp_path):
    text = measured.read_text()
    for content, message in (
        (text[:200], "is not valid JSON"),
        (text.replace('"throttled": ', '"throttled": NaN, "x": '), "is not valid JSON"),
        ('{"schema": 2, "x": ' + "[" * 100_000, "is not valid JSON"),
        (text.replace("schema", "schem\udcff").encode(errors="surrogateescape"), "is not valid JSON|damaged"),
    ):
        measured.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=message):
            read_results(measured, tmp_path)
    with measured.open("wb") as stream:
        stream.truncate(10**9)
    with pytest.raises(UserError, match="1000 MB, more than any file of its kind"):
        read_results(measured, tmp_path)
    measured.unlink()
    with pytest.raises(UserError, match=r"copy measurements\.json back"):
        read_results(measured, tmp_path)
