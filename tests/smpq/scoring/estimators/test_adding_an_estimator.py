"""One file with one decorator is an estimator for the command line."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from smpq.scoring.estimators import ESTIMATORS
from tests.commands import TINY, done, refused

NAME = "halved"
MODULE = "tests.smpq.scoring.estimators.thrown_away"


@pytest.fixture
def added():
    importlib.import_module(MODULE)
    yield
    ESTIMATORS.pop(NAME, None)
    del sys.modules[MODULE]


@pytest.mark.usefixtures("added")
def test_it_explains_a_policy(tmp_path):
    run = tmp_path / "run"
    done("score", *TINY, "--target", "simulate", "--effort", "fast", "--quiet", "--out", run)
    done("solve", run, "--budget", "size=0.6x", "--quiet")
    exact, halved = (
        json.loads(done("explain", run, "--estimator", name, "--json", "--quiet").out) for name in ("exact", NAME)
    )
    assert halved["estimator"] == NAME
    assert halved["total"] == pytest.approx(exact["total"] / 2)
    del ESTIMATORS[NAME]
    assert f"not '{NAME}'" in refused("explain", run, "--estimator", NAME)
