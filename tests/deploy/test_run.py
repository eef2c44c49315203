import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from calib.errors import UserError
from calib.fingerprint import Fingerprint
from deploy.run import Run, Settings, versions
from smpq.workers.resources import Resources
from tests.conftest import ROOT

SETTINGS = Settings(task="m:t", formats="w8a8,fp32", compute_capabilities=("sm86", "sm89"), samples=64)


IDENTITY = Fingerprint("graph", "weights", "data", {"torch": "2.13.0"})


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "deep" / "run")
    made.keep(SETTINGS, IDENTITY)
    return made


def names_in(run):
    return sorted(path.name for path in run.path.iterdir())


def test_settings_are_kept(run):
    assert run.settings() == SETTINGS
    record = json.loads((run.path / "run.json").read_text())
    assert record["settings"] == {**asdict(SETTINGS), "compute_capabilities": ["sm86", "sm89"]}
    assert record["versions"] == versions()
    assert {"torch", "onnx", "onnxruntime"} <= versions().keys()
    before = (run.path / "run.json").read_bytes()
    run.check(SETTINGS)
    run.keep(SETTINGS, IDENTITY)
    assert (run.path / "run.json").read_bytes() == before


@pytest.mark.parametrize("change", [{"target": "simulate"}, {"seed": 1}, {"formats": ""}, {"compute_capabilities": ("sm86",)}])
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
        ({"weights": "others", "versions": {"torch": "2.13.0", "onnx": "1"}}, "the weights, onnx none -> 1 changed since"),
    ],
)
def test_a_run_of_something_else_is_not_continued(run, change, words):
    with pytest.raises(UserError, match=rf"^{words} .* use another --out"):
        run.keep(SETTINGS, replace(IDENTITY, **change))


@pytest.mark.parametrize("damage", ["a text, as older versions wrote it", None, {"graph": "graph"}])
def test_a_run_that_does_not_say_what_it_was_made_of(run, damage):
    record = run.read_json("run.json")
    run.write_json("run.json", {**record, "fingerprint": damage})
    with pytest.raises(UserError, match="does not say what the run was made of"):
        run.keep(SETTINGS, IDENTITY)


def test_resources_are_information_and_may_change(run):
    assert "resources" not in run.read_json("run.json")
    for resources in (Resources(workers=4), Resources(ray="local", memory_limit_mb=100.0)):
        run.keep(SETTINGS, IDENTITY, resources)
        assert run.read_json("run.json")["resources"] == resources.to_json()
        assert run.settings() == SETTINGS
    run.check(SETTINGS)


def test_two_processes_do_not_work_on_one_run(run):
    run.lock()  # more than once in one process is no harm
    code = f"from pathlib import Path; from deploy.run import Run; Run(Path({str(run.path)!r})).lock()"
    other = [sys.executable, "-c", code]
    refused = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert f"another process works on {run.path}: wait until it is done, stop it, or use another --out" in refused.stderr


def test_the_lock_ends_with_its_process(tmp_path):
    code = f"from pathlib import Path; from deploy.run import Run; run = Run(Path({str(tmp_path)!r})); run.lock(); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "1\n"
    mine = Run(tmp_path)
    with pytest.raises(UserError, match="another process works on"):
        mine.lock()
    other.kill()
    other.communicate()
    mine.lock()


def test_checking_creates_nothing(tmp_path):
    run = Run(tmp_path / "run")
    run.check(SETTINGS)
    assert not run.path.exists()
    with pytest.raises(UserError, match="is not a run"):
        run.settings()


def test_a_setting_of_a_later_version_is_not_read_as_nothing(run):
    record = run.read_json("run.json")
    run.write_json("run.json", {**record, "schema": 99})
    with pytest.raises(UserError, match="schema 99"):
        run.settings()
    del record["settings"]["task"]
    run.write_json("run.json", record)
    with pytest.raises(UserError, match=r"run.json is damaged"):
        run.settings()


@pytest.mark.parametrize("failing", ["replace", "fdopen"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(run, monkeypatch, failing):
    run.write_json("x.json", {"value": 1})
    names = names_in(run)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace" if failing == "replace" else "os.fdopen", full)
        with pytest.raises(UserError, match=r"cannot write .*x.json: No space left on device"):
            run.write_json("x.json", {"value": 2})
    assert run.read_json("x.json") == {"value": 1}
    assert names_in(run) == names


def test_a_kill_while_writing_leaves_the_old_file(run, monkeypatch):
    run.write_json("x.json", {"value": 1})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write_json("x.json", {"value": 2})
    assert run.read_json("x.json") == {"value": 1}
    assert names_in(run) == ["run.json", "run.lock", "x.json"]


def test_a_number_that_json_does_not_know_is_never_written(run):
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("x.json", {"value": float("nan")})
    assert not run.has("x.json")


def test_reading(run):
    with pytest.raises(UserError, match=r"x.json is missing: make it with smpq x"):
        run.read_json("x.json", "make it with smpq x")
    for text, message in [
        ('{"a": ', "is not valid JSON"),
        ("[1]", "lacks b: correct it, or delete it"),
        ('{"a": 1}', "lacks b"),
    ]:
        run.file("x.json").write_text(text)
        with pytest.raises(UserError, match=message):
            run.read_json("x.json", keys=["b"])
    run.file("x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not valid JSON"):
        run.read_json("x.json")
    run.file("y.json").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*y.json"):
        run.read_json("y.json")


def test_made_for_one_policy(run):
    assert not run.made_for("build.json", "a=w8a8")
    run.write_json("build.json", {"policy": "a=w8a8"})
    assert run.made_for("build.json", "a=w8a8")
    assert not run.made_for("build.json", "a=fp32")
    run.write_json("build.json", {})
    with pytest.raises(UserError, match="lacks policy"):
        run.made_for("build.json", "a=w8a8")


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 0}, {"evaluations": 0}, {"batch": -1}, {"precision": 1.0}, {"seed": -1}, {"value": "x"}, {"formats": "w1"}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(UserError):
        replace(SETTINGS, **wrong)
