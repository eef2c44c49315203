import json
import re
import subprocess
import sys

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
from tests.conftest import ROOT

SETTINGS = Settings(task="m:t", formats="w8a8,fp32", compute_capabilities=("sm86", "sm89"), samples=64)
BUILD = BuildFile(
    policy="a=w8a8", built_on=None, engines={"engine.onnx": BuiltRow(sha256="0" * 64, size_bytes=1, build_seconds=0.1, versions={})}, kernels={}
)  # fmt: skip


IDENTITY = Fingerprint("graph", "weights", "data", {"torch": "2.13.0"})


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
    assert record["settings"] == {**asdict(SETTINGS), "compute_capabilities": ["sm86", "sm89"]}
    assert record["versions"] == versions()
    assert {"torch", "onnx", "onnxruntime"} <= versions().keys()
    before = run.file("run.json").read_bytes()
    run.check(SETTINGS)
    run.keep(SETTINGS, IDENTITY)
    assert run.file("run.json").read_bytes() == before


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
        assert content(run)["resources"] == resources.to_json()
        assert run.settings() == SETTINGS
    run.check(SETTINGS)


SERVER = """
import sys
from pathlib import Path
from calib.errors import UserError
from deploy.run.directory import Run
held = {}
for line in sys.stdin:
    word, path = line.rstrip().split(" ", 1)
    try:
        held[path] = Run(Path(path))
        held[path].lock()
        answer = "mine"
    except UserError as error:
        answer = error
    if word == "try":
        del held[path]
    print(answer, flush=True)
"""


class Other:
    """Another process that locks runs."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, text=True, **pipes)

    def ask(self, word, path):
        """`lock` keeps the lock that it gets, `try` gives it back."""
        self.process.stdin.write(f"{word} {path}\n")
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().rstrip()

    def gets(self, path, word="try"):
        self.ask(word, path)
        return self.answer()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def other():
    process = Other()
    yield process
    process.end()


def refused(path):
    return f"another process works on {path}: wait until it is done, stop it, or use another --out"


def test_two_processes_do_not_work_on_one_run(run, other):
    assert other.gets(run.path) == "mine"
    run.lock()
    run.lock()  # more than once in one process is no harm
    assert other.gets(run.path) == refused(run.path)
    assert other.gets(f"{run.path}2") == "mine"


def test_of_two_that_begin_a_run_together_one_gets_it(tmp_path, other):
    for index in range(20):
        run = Run(tmp_path / str(index))
        other.ask("lock", run.path)
        mine = "mine"
        try:
            run.lock()
        except UserError as error:
            mine = str(error)
        assert sorted([mine, other.answer()]) == sorted(["mine", refused(run.path)])


def test_the_lock_ends_with_its_object(tmp_path, other):
    first = Run(tmp_path)
    first.lock()
    assert other.gets(tmp_path) == refused(tmp_path)
    del first
    assert other.gets(tmp_path) == "mine"


def test_a_lock_whose_file_was_removed_does_not_count(tmp_path, other):
    """Otherwise two processes could hold a lock of one run, of files that had the same name."""
    first = Run(tmp_path / "run")
    first.lock()
    first.discard_if_new()
    second = Run(tmp_path / "run")
    second.lock()
    assert other.gets(tmp_path / "run") == refused(tmp_path / "run")


def test_the_lock_ends_with_its_process(tmp_path):
    other, mine = Other(), Run(tmp_path)
    assert other.gets(tmp_path, "lock") == "mine"
    with pytest.raises(UserError, match="another process works on"):
        mine.lock()
    other.end()
    mine.lock()


def test_checking_creates_nothing(tmp_path):
    run = Run(tmp_path / "run")
    run.check(SETTINGS)
    assert not run.path.exists()
    with pytest.raises(UserError, match=r"is not a run \(it has no run.json\): make one with smpq run or smpq score"):
        run.settings()


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / ".hidden").write_text("")
    Run(tmp_path).check(SETTINGS)
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / "zebra").mkdir()
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\): give --out a new or empty directory"):
        Run(tmp_path).check(SETTINGS)
    with pytest.raises(UserError, match=r"thesis.tex is a file: give --out a directory"):
        Run(tmp_path / "thesis.tex").check(SETTINGS)


def test_a_run_in_the_place_of_a_file_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"cannot write {path}: "):
            Run(path).lock()


def test_what_the_lock_made_is_taken_away_again(tmp_path):
    there, new = tmp_path / "there", tmp_path / "new"
    there.mkdir()
    for path in (there, new):
        run = Run(path)
        run.lock()
        run.check(SETTINGS)
        assert names_in(run) == ["run.lock"]
        run.discard_if_new()
    assert not new.exists()
    assert list(there.iterdir()) == []


def test_a_run_with_content_is_not_taken_away(run):
    run.lock()
    run.discard_if_new()
    assert names_in(run) == ["run.json", "run.lock"]


def test_a_setting_of_a_later_version_is_not_read_as_nothing(run):
    record = content(run)
    for changed, message in [
        ({**record, "schema": 99}, "run.json has schema 99, this version of smpq reads schema 2"),
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
