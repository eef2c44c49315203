"""This machine as the device."""

from __future__ import annotations

import os
from pathlib import Path

from calib.errors import UserError
from calib.files.storage import writing
from deploy.devices.base import Announce, Experiment, Result, silent
from deploy.devices.bundle import check_models, write_experiment
from deploy.devices.checks import check_measured
from deploy.devices.known import known_of, read_known, results_in_order
from deploy.devices.places import machine_directory
from deploy.devices.products import ProductFile, take_product
from deploy.runner.errors import DeviceError
from deploy.runner.main import run_experiment
from deploy.runner.product import ENGINES_DIRECTORY
from deploy.runner.state import machine
from deploy.terminal.printable import printable


class LocalDevice:
    """Measures in this process; a directory keeps what has been measured, for each machine."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made when it does not exist."""
        self._directory = directory

    def describe(self) -> str:
        """Name this machine."""
        return machine()

    def measure(self, experiment: Experiment, announce: Announce = silent) -> list[Result]:
        """See `Device`. Models are read where they are."""
        check_models(experiment)
        place = machine_directory(self._directory, self.describe())
        models = {c.name: os.path.relpath(c.model, place) for c in (experiment.float_, *experiment.candidates)}
        with writing(place):
            asked = write_experiment(experiment, place, models)
            try:
                run_experiment(place, announce, alone=True)
            except DeviceError as error:
                raise UserError(printable(str(error), 2000)) from error
        results = results_in_order(read_known(place, asked), asked)
        check_measured(results)
        return results

    def known(self, experiment: Experiment) -> list[Result]:
        """See `Device`."""
        return known_of(machine_directory(self._directory, self.describe()), experiment)

    def fetch_engine(self, result: Result, directory: Path) -> ProductFile | None:
        """See `Device`."""
        return take_product(
            machine_directory(self._directory, self.describe()) / ENGINES_DIRECTORY / result.name, result, directory
        )

    def close(self) -> None:
        """Do nothing: what is in the directory belongs to the run."""
