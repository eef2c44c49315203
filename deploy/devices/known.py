"""What has been measured on one machine, kept on this side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from calib.files.storage import write_record
from deploy.devices.base import Experiment
from deploy.devices.bundle import asked_of
from deploy.devices.checks import check_results, keys_of
from deploy.devices.messages import Asked, DeviceResults, Result, read_message
from deploy.runner.experiment import RESULTS_FILE

_REPAIR = "delete it to measure again"


def read_known(directory: Path, asked: Asked) -> dict[str, Result]:
    """Return the results of what is asked for, by key, checked; none where other models, data or another runtime were
    measured.
    """
    found = _read(directory, asked)
    return check_results(found, asked, earlier=None) if found is not None else {}


def known_of(directory: Path, experiment: Experiment) -> list[Result]:
    """Return the results of an experiment's candidates that are kept, in their order; none where none were kept."""
    asked = asked_of(experiment)
    return results_in_order(read_known(directory, asked), asked)


def results_in_order(known: Mapping[str, Result], asked: Asked) -> list[Result]:
    """Return the result of each candidate that has one, in the order of the candidates."""
    return [known[key] for key in keys_of(asked) if key in known]


def keep_results(directory: Path, arrived: DeviceResults, results: Mapping[str, Result]) -> None:
    """Add results to those that are kept. Those of another version of the runtime are dropped: they are not
    comparable.
    """
    before = _read(directory, arrived)
    old = before.results if before is not None and before.versions == arrived.versions else ()
    new = [result for result in results.values() if result.cause in (None, "refused")]
    kept = [result for result in old if result.key not in results]
    write_record(directory / RESULTS_FILE, msgspec.structs.replace(arrived, results=(*kept, *new)))


def _read(directory: Path, asked: Asked | DeviceResults) -> DeviceResults | None:
    file = directory / RESULTS_FILE
    if not file.is_file():
        return None
    found = read_message(file, DeviceResults, "", _REPAIR)
    return found if (found.fingerprint, found.runtime) == (asked.fingerprint, asked.runtime) else None
