"""Every width reconstructed before the search: the search,
the exported engine and a run that goes on use the weights.
"""

import pytest

from deploy.run import widths
from smpq.training.finetuned import FineTunedWeights
from tests.commands import assert_matches, copy_of, done, refused
from tests.deploy.stages.test_reconstructing import SEARCH, read

WIDE = (*SEARCH, "--reconstruct-widths", "80")
SCORED = (*SEARCH[: SEARCH.index("--budget")], "--quiet")
FILES = ("width-w2.safetensors", "width-w3.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("widths") / "run"
    done("run", *WIDE, "--out", run)
    return run


def test_the_engine_has_the_weights_that_the_search_saw(run, tmp_path):
    plain = tmp_path / "plain"
    done("run", *SEARCH, "--out", plain)
    with_widths, without = read(run, "verify.json")["stages"], read(plain, "verify.json")["stages"]
    assert read(run, "policy.json")["policy"] == read(plain, "policy.json")["policy"], (
        "the budget leaves two bits alone"
    )
    assert with_widths["fake_quant"]["mean"] > without["fake_quant"]["mean"]
    for stage in ("onnx", "engine"):
        assert with_widths[stage]["agreement"] > 0.98
    assert read(run, "calibration.json")["digest"] != read(plain, "calibration.json")["digest"]
    assert read(run, "report.json")["options"]["--reconstruct-widths"] == ["80"]


def test_biases_and_the_steps_of_activations_stay_those_of_the_network(run):
    found = FineTunedWeights.load(run / FILES[0])
    assert found.settings["bias_rate"] == found.settings["activation_rate"] == 0
    assert not list(run.glob("*.partial"))


def test_a_width_is_reconstructed_once(run, tmp_path, monkeypatch):
    again = copy_of(run, tmp_path / "run")
    known = (again / FILES[1]).read_bytes()
    for name in (FILES[0], "scores.json"):
        (again / name).unlink()
    made, rebuild = [], widths.reconstruct

    def counted(subject, *args):
        made.append(subject.key)
        return rebuild(subject, *args)

    monkeypatch.setattr(widths, "reconstruct", counted)
    done("score", *SCORED, "--reconstruct-widths", "80", "--out", again)
    assert len(made) == 1
    assert "w2a8" in made[0]
    first, second = FineTunedWeights.load(run / FILES[0]), FineTunedWeights.load(again / FILES[0])
    assert all((first.weights[path].values == second.weights[path].values).all() for path in first.weights)
    assert (again / FILES[1]).read_bytes() == known


def test_wrong_input(run, tmp_path):
    again = copy_of(run, tmp_path / "run")
    (again / FILES[0]).write_bytes(b"nonsense")
    assert_matches("width-w2.safetensors.*delete it", refused("run", *WIDE, "--out", again))
    assert_matches(
        "--reconstruct-widths", refused("run", *SEARCH, "--out", tmp_path / "new", "--reconstruct-widths", "0")
    )
    assert_matches("reconstruct_widths=80, now None", refused("score", *SCORED, "--out", run))
