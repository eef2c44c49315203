"""Measurements that come back from a device: none is thrown away, and the engine that they show is the run's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calib.errors import UserError
from deploy.stages.bundling import take_feedback, write_next_bundle
from tests.deploy.stages.test_bundles import answered
from tests.deploy.stages.test_looping import read

BUDGET = "latency=0.75x"


def some_of(file: Path, count: int) -> Path:
    """Leave the first results of a file."""
    record = read(file)
    file.write_text(json.dumps({**record, "results": record["results"][:count]}))
    return file


def test_the_latency_is_that_of_an_earlier_bundle_where_the_best_engine_was_in_it(workspace, tmp_path):
    directory, latency = tmp_path / "bundle", workspace.run.file("latency.json")
    write_next_bundle(workspace, BUDGET, directory)
    take_feedback(workspace, some_of(answered(workspace, directory), 3))
    before = read(latency)
    latency.unlink()
    write_next_bundle(workspace, None, directory)
    record = take_feedback(workspace, answered(workspace, directory, refuses=lambda _: ("no kernel", [])))
    assert record.met
    assert read(latency) == before


def test_measurements_that_were_not_fed_back_are_not_thrown_away(workspace, tmp_path):
    directory = tmp_path / "bundle"
    write_next_bundle(workspace, BUDGET, directory)
    file = some_of(answered(workspace, directory), 1)
    refused = r"measurements\.json was not fed back: use smpq feedback .*measurements\.json first, or delete it"
    with pytest.raises(UserError, match=refused):
        write_next_bundle(workspace, BUDGET, directory)
    assert len(read(file)["results"]) == 1
    take_feedback(workspace, file)
    answered(workspace, directory)  # the runner has gone on
    with pytest.raises(UserError, match=refused):
        write_next_bundle(workspace, None, directory)
    some_of(file, 1)
    write_next_bundle(workspace, None, directory)
    assert not file.exists()
