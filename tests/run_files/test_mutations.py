"""A damaged file of a run is one message, or does what the file did before, or what is known why: never a traceback,
never silence.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.run.schemas import schema_files, schemas
from tests.commands import smpq
from tests.conftest import ROOT
from tests.run_files.complete import make_run
from tests.run_files.mutations import mutations, share
from tests.run_files.trial import ACCEPTED, EQUAL, FAILED, REFUSED, Trials, wrong_with

SCHEMAS = schemas()
EACH = 12
READ_BY_REPORT = (
    "run.json",
    "space.json",
    "costs.json",
    "scores.json",
    "policy.json",
    "loop.json",
    "latency.json",
    "verify.json",
)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    with make_run(tmp_path_factory.mktemp("complete") / "run") as workspace:
        yield Trials(workspace)


@pytest.mark.parametrize("file", SCHEMAS)
def test_every_mutation_is_refused_or_accepted_for_a_reason(trials: Trials, file: str) -> None:
    content = (trials.run / file).read_bytes()
    verdicts = [trials(mutation) for mutation in share(file, content, SCHEMAS[file], EACH)]
    assert [f"{verdict.mutation}: {verdict.said}" for verdict in verdicts if verdict.kind == FAILED] == []
    kinds = {verdict.kind for verdict in verdicts}
    assert REFUSED in kinds
    assert kinds <= {REFUSED, EQUAL, ACCEPTED}


@pytest.mark.parametrize("file", READ_BY_REPORT)
def test_keys_in_another_order_change_nothing(trials: Trials, file: str) -> None:
    found = mutations(file, (trials.run / file).read_bytes(), SCHEMAS[file])
    (mutation,) = [each for each in found if not each.place and each.kind == "keys in another order"]
    assert trials(mutation).kind == EQUAL


@pytest.mark.parametrize("file", READ_BY_REPORT)
def test_the_command_says_it_in_one_line(trials: Trials, file: str, tmp_path: Path) -> None:
    run = shutil.copytree(trials.run, tmp_path / "run", ignore=shutil.ignore_patterns("candidates", "device"))
    kinds = {"cut at 50 %", "nested objects", "not UTF-8 in a key", "another key", "emptied"}
    chosen = [
        each
        for each in mutations(file, (run / file).read_bytes(), SCHEMAS[file])
        if each.kind in kinds and not each.place
    ]
    assert len(chosen) == len(kinds)
    for mutation in chosen:
        (run / file).write_bytes(mutation.content())
        result = smpq("report", run)
        assert (result.code, result.out) == (2, ""), str(mutation)
        (line,) = result.err.splitlines()
        assert line.startswith("error: ")
        assert not wrong_with(line, run / file)


def test_the_documentation_has_the_schemas() -> None:
    documented = {path.name: path.read_text() for path in (ROOT / "docs" / "schemas").iterdir()}
    assert documented == schema_files(), "python -m deploy.run.schemas docs/schemas"
