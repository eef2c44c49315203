from __future__ import annotations

import dataclasses
import json
import re

import pytest
from msgspec.structs import asdict, replace

from calib.errors import UserError
from calib.network.fingerprint import Fingerprint
from deploy.files.engine import BuildFile, BuiltRow
from deploy.files.search import BudgetFile
from deploy.run.directory import Run, versions
from deploy.run.record import RunFile
from deploy.run.settings import Settings
from smpq.files import PolicyFile
from smpq.value.workers.resources import Resources

SETTINGS = Settings(
    task="m:t", formats="w8a8,fp32", compute_capabilities=("sm86", "sm89"), samples=64, pins=("head=float",)
)
BUILD = BuildFile(
    policy="a=w8a8", built_on=None,
    engines={"engine.onnx": BuiltRow(sha256="0" * 64, size_bytes=1, build_seconds=0.1, versions={})}, kernels={}
)  # fmt: skip


IDENTITY = Fingerprint("graph", "weights", "data", "judges", "cpython-311", {"torch": "2.13.0"})


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "deep" / "run")
    made.keep(SETTINGS, IDENTITY)
    return made


def names_in(run):
    return sorted(path.name for path in run.path.iterdir())


def content(run, name="run.json"):
    return json.loads(run.file(name).read_text())


def test_settings_are_kept(run):
    assert run.settings() == SETTINGS
    record = content(run)
    assert record["settings"] == {
        **asdict(SETTINGS),
        "compute_capabilities": ["sm86", "sm89"],
        "pins": ["head=float"],
        "shapes": [],
    }
    assert record["versions"] == versions()
    assert {"torch", "onnx", "onnxruntime"} <= versions().keys()
    before = run.file("run.json").read_bytes()
    run.check(SETTINGS)
    run.keep(SETTINGS, IDENTITY)
    assert run.file("run.json").read_bytes() == before


@pytest.mark.parametrize("name", ["l" * 300, "nul\0byte", "many/" * 1000])
def test_a_path_that_no_system_has_is_one_message(tmp_path, name):
    with pytest.raises(UserError, match=r"--out must be a path .* with names of at most 255 bytes, not '/") as caught:
        Run(tmp_path / name).check(SETTINGS)
    assert len(str(caught.value)) < 200


def test_formats_have_one_spelling(run):
    for text in ("INT8, fp32", "int8,fp32", " w8a8,FP32,"):
        run.check(replace(SETTINGS, formats=text))
    assert Settings(task="m:t", formats="int4,int8").formats == "w4a16,w8a8"
    assert content(run)["settings"]["formats"] == "w8a8,fp32"


@pytest.mark.parametrize(
    "change", [{"target": "simulate"}, {"seed": 1}, {"formats": ""}, {"compute_capabilities": ("sm86",)}]
)
def test_other_settings_need_another_run(run, change):
    (name,) = change
    with pytest.raises(UserError, match=f"{name}=.*use another --out"):
        run.check(replace(SETTINGS, **change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"graph": "another"}, r"the model's forward\(\) changed since"),
        ({"weights": "others"}, "the weights changed since"),
        ({"data": "others"}, "the calibration data changed since"),
        ({"versions": {"torch": "2.14.0"}}, "torch 2.13.0 -> 2.14.0 changed since"),
        (
            {"weights": "others", "versions": {"torch": "2.13.0", "onnx": "1"}},
            "the weights, onnx none -> 1 changed since",
        ),
    ],
)
def test_a_run_of_something_else_is_not_continued(run, change, words):
    with pytest.raises(UserError, match=rf"^{words} .* use another --out"):
        run.keep(SETTINGS, replace(IDENTITY, **change))


@pytest.mark.parametrize("damage", ["a text, as older versions wrote it", None, {"graph": "graph"}])
def test_a_run_that_does_not_say_what_it_was_made_of(run, damage):
    run.file("run.json").write_text(json.dumps({**content(run), "fingerprint": damage}))
    with pytest.raises(UserError, match=r"run\.json is damaged: .* at `\$\.fingerprint"):
        run.keep(SETTINGS, IDENTITY)


def test_resources_are_information_and_may_change(run):
    assert run.read(RunFile).resources is None
    for resources in (Resources(workers=4), Resources(ray="local", memory_limit_mb=100.0)):
        run.keep(SETTINGS, IDENTITY, resources)
        assert content(run)["resources"] == dataclasses.asdict(resources)
        assert run.settings() == SETTINGS
    run.check(SETTINGS)


def test_the_machine_that_times_engines_is_information_and_may_change(run):
    for told, kept in (("ssh://me@orin", "ssh://me@orin"), (None, "ssh://me@orin"), ("", "")):
        run.keep(SETTINGS, IDENTITY, address=told)
        assert run.read(RunFile).address == kept


def test_a_setting_of_a_later_version_is_not_read_as_nothing(run):
    record = content(run)
    for changed, message in [
        ({**record, "schema": 99}, "run.json has schema 99, this version of smpq reads schema 3"),
        (
            {**record, "settings": {**record["settings"], "later": 1}},
            r"run.json is damaged: object contains unknown field `later`",
        ),
        (
            {**record, "settings": {"target": "ort-cpu"}},
            r"run.json is damaged: .*required field `task` - at `\$.settings`",
        ),
        (
            {**record, "settings": {**record["settings"], "seed": -1}},
            r"run.json is damaged: --seed must be a whole number, at least 0",
        ),
        ({**record, "settings": {**record["settings"], "rounding": "up"}}, r"run.json is damaged: .*'up'"),
    ]:
        run.file("run.json").write_text(json.dumps(changed))
        for read in (run.settings, lambda: run.check(SETTINGS), lambda: run.keep(SETTINGS, IDENTITY)):
            with pytest.raises(UserError, match=message) as caught:
                read()
            assert str(run.file("run.json")) in str(caught.value)


def test_records_come_back_and_the_last_one_written_counts(run):
    for text in ("size=0.2x", "size=0.3x"):
        run.write(BudgetFile(budget=text))
        assert run.read(BudgetFile) == run.find(BudgetFile) == BudgetFile(budget=text)
    assert names_in(run) == ["budget.json", "run.json"]


def test_what_is_missing_is_none_or_a_message(run):
    assert run.find(PolicyFile) is None
    assert not run.has("policy.json")
    with pytest.raises(UserError, match=r"policy.json is missing: make it with smpq solve"):
        run.read(PolicyFile)


@pytest.mark.parametrize("read", [Run.read, Run.find])
def test_what_is_damaged_is_neither_read_nor_taken_for_missing(run, read):
    for text, message in [
        ('{"schema": 1', "is not valid JSON"),
        ("[1]", "is damaged"),
        ('{"schema": 1}', "required field `policy`"),
    ]:
        run.file("policy.json").write_text(text)
        with pytest.raises(
            UserError, match=re.escape(str(run.file("policy.json"))) + f".*{message}.*: correct it, or delete it"
        ):
            read(run, PolicyFile)


def test_made_for_one_policy(run):
    assert run.find_for(BuildFile, "a=w8a8") is None
    run.write(BUILD)
    assert run.find_for(BuildFile, "a=w8a8") == BUILD
    assert run.find_for(BuildFile, "a=fp32") is None
    run.file("build.json").write_text("{}")
    with pytest.raises(UserError, match=r"build.json is damaged"):
        run.find_for(BuildFile, "a=w8a8")


def test_files_that_somebody_has_put_into_a_run_stay_as_they_are(run):
    carried = run.file("measurements.json")
    carried.write_text("what a device has measured")
    run.lock()
    assert carried.read_text() == "what a device has measured"
    assert names_in(run) == ["measurements.json", "run.json", "run.lock"]
