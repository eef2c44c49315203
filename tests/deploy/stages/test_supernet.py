"""The paper's method as a stage: a supernet is trained once, chooses for any budget, and nothing of another method is
taken for it.
"""

import json

import pytest

from deploy.stages.run_all import open_run
from deploy.stages.supernet import SUPERNET, train_supernet
from deploy.terminal.progress import Progress
from smpq.supernet.paths import PathValue
from smpq.supernet.settings import SupernetSettings
from tests.commands import assert_matches, contents, copy_of, done, refused
from tests.smpq.supernets import Task, batch_of

TASK = (
    "--task",
    "tests.smpq.supernets:Task",
    "--target",
    "simulate",
    "--rounding",
    "nearest",
    "--effort",
    "fast",
    "--samples",
    "32",
)
FORMATS = ("--formats", "w2a8,w4a8,w4a4,fp32")
SIZES = ("--epochs", "2", "--steps", "3", "--walks", "2", "--held-out", "32", "--gamma", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    done("train-supernet", *TASK, *FORMATS, *SIZES, "--out", run, "--quiet")
    return run


@pytest.fixture
def run(trained, tmp_path):
    return copy_of(trained, tmp_path / "run")


def read(run, name):
    return json.loads((run / name).read_text())


def test_the_record_says_what_was_learned(trained):
    record = read(trained, "supernet.json")
    assert len(record["history"]) == record["settings"]["epochs"] == 2
    assert record["operations"] == 3 * (3 + 3)
    assert record["shares"]["stem weight"].keys() == {"w2", "w4", "w32"}
    assert sum(record["shares"]["stem weight"].values()) == pytest.approx(1)
    assert record["contributions"]["metric"]["updates"] == 1
    assert len(record["contributions"]["metric"]["operations"][0]["walks"]) == 2


def test_a_finished_supernet_is_not_trained_again(run):
    before = contents(run, without=["run.lock"])
    done("train-supernet", *TASK, *FORMATS, *SIZES, "--out", run, "--quiet")
    assert contents(run, without=["run.lock"])[SUPERNET] == before[SUPERNET]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "estimator"), [("smpq", "supernet Shapley"), ("dmpq", "supernet softmax")])
def test_the_whole_job_by_the_supernet(run, method, estimator):
    arguments = ("run", *TASK, *FORMATS, "--out", run, "--budget", "avg_bits=5", "--finetune", "1", "--quiet")
    before = (run / SUPERNET).read_bytes()
    done(*arguments, "--method", method)
    assert (run / SUPERNET).read_bytes() == before
    report, scores = read(run, "report.json"), read(run, "scores.json")
    assert report["met"]
    assert report["scores"]["estimator"] == scores["estimator"] == estimator
    assert report["finetuning"] is not None
    assert_matches("is of method", refused(*arguments, "--method", {"smpq": "dmpq", "dmpq": "smpq"}[method]))
    assert_matches("is of method", refused(*arguments))
    done("solve", run, "--budget", "avg_bits=32", "--quiet")
    assert_matches("simulate has no engine to time", refused("solve", run, "--budget", "latency=0.5x"))
    rows = scores["scores"]
    reached = sum(rows[path][text]["value"] for path, text in read(run, "policy.json")["policy"].items())
    assert reached == pytest.approx(sum(max(cell["value"] for cell in row.values()) for row in rows.values()))


def test_it_goes_on_after_a_kill(trained, tmp_path):
    class KilledError(Exception):
        pass

    class Stopping(Progress):
        def say(self, text):
            if "epoch 1 of" in text:
                raise KilledError

    again = tmp_path / "again"
    settings = open_run(trained, Progress()).settings
    with pytest.raises(KilledError), open_run(again, Stopping(), settings) as workspace:
        train_supernet(workspace, SupernetSettings(epochs=2, steps=3, walks=2, samples=32, gamma=0.0))
    assert len(read(again, "supernet.json")["history"]) == 1
    with open_run(again, Progress()) as workspace:
        train_supernet(workspace)
    ours, theirs = read(again, "supernet.json"), read(trained, "supernet.json")
    assert ours["shares"] == theirs["shares"]
    assert ours["contributions"] == theirs["contributions"]


def test_one_format_needs_no_supernet(tmp_path):
    out = tmp_path / "run"
    message = refused("train-supernet", *TASK, "--formats", "w4a8", "--out", out, "--quiet")
    assert "more than one format" in message
    assert not (out / SUPERNET).exists()


def test_other_settings_than_the_supernet_was_trained_with(run):
    assert_matches(
        "walks=2, now 3",
        refused("train-supernet", *TASK, *FORMATS, *SIZES[:4], "--walks", "3", *SIZES[6:], "--out", run, "--quiet"),
    )


def test_other_training_data_than_the_supernet_was_trained_on(run, monkeypatch):
    monkeypatch.setattr(Task, "training", lambda _, epoch: [batch_of(5000 + epoch)] * 4)
    message = refused("train-supernet", *TASK, *FORMATS, *SIZES, "--out", run, "--quiet")
    assert_matches("trained from another model, other data or other formats", message)


def test_batches_that_paths_cannot_be_judged_on_are_said_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Task, "calibration", lambda _: [batch_of(1), batch_of(2, 1), batch_of(3)])
    out = tmp_path / "run"
    message = refused("score", *TASK[:-1], "64", *FORMATS, "--out", out, "--method", "smpq-paths", "--quiet")
    assert_matches("batches of two samples or more", message)
    assert not (out / SUPERNET).exists()


def test_what_a_method_cannot_do(tmp_path):
    out = tmp_path / "run"
    start = ("run", *TASK, *FORMATS, "--out", out, "--quiet", "--budget")
    assert_matches("scores alone, without engines", refused(*start, "latency=0.5x", "--method", "smpq"))
    assert not out.exists()
    untrainable = ("tests.smpq.supernets:Untrainable", *TASK[2:])
    assert_matches(
        "no training data",
        refused("run", "--task", *untrainable, *FORMATS, "--out", out, "--budget", "avg_bits=4", "--method", "smpq"),
    )


def test_a_supernet_holds_integers_alone(tmp_path):
    command = ("--target", "simulate", "--formats", "w8a8,fp8", "--out", tmp_path / "run", "--quiet")
    assert_matches("fp8 cannot be trained", refused("train-supernet", *TASK, *command))


@pytest.mark.slow
def test_the_whole_job_by_paths(tmp_path, monkeypatch):
    run, sizes = tmp_path / "run", ("--paths", *SIZES[:4])
    done("train-supernet", *TASK, *FORMATS, *sizes, "--out", run, "--quiet")
    before = (run / SUPERNET).read_bytes()
    arguments = (*TASK, *FORMATS, "--out", run, "--method", "smpq-paths", "--quiet")
    done("run", *arguments, "--budget", "avg_bits=5", "--finetune", "1")
    assert (run / SUPERNET).read_bytes() == before
    report, scores = read(run, "report.json"), read(run, "scores.json")
    assert report["met"]
    assert scores["method"] == "smpq-paths"
    values = [cell["value"] for row in scores["scores"].values() for cell in row.values()]
    assert len(set(values)) > 3
    # what was evaluated is in the journal
    monkeypatch.setattr(PathValue, "_value", lambda *_: pytest.fail("it was evaluated before"))
    (run / "scores.json").unlink()
    done("score", *arguments)
    assert read(run, "scores.json")["scores"] == scores["scores"]


def test_a_supernet_of_paths_is_not_one_of_mixtures(run, tmp_path):
    arguments = ("run", *TASK, *FORMATS, "--budget", "avg_bits=5", "--quiet")
    message = refused(*arguments, "--out", run, "--method", "smpq-paths")
    assert_matches(r"trained as a mixture \(--mixture\), and the method needs one that is trained by paths", message)
    other = tmp_path / "other"
    done("train-supernet", *TASK, *FORMATS, "--paths", *SIZES[:4], "--out", other, "--quiet")
    assert_matches(r"trained by paths \(--paths\)", refused(*arguments, "--out", other, "--method", "dmpq"))
