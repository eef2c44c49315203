"""This machine as the device."""

from __future__ import annotations

import os
from pathlib import Path

from calib.errors import UserError
from deploy.devices.base import Announce, Experiment, Result, silent
from deploy.devices.bundle import check_models, results_of, write_experiment, writing
from deploy.on_device.errors import DeviceError
from deploy.on_device.main import run_experiment
from deploy.on_device.state import machine


class LocalDevice:
    """Measures in this process; a directory keeps what has been measured."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made when it does not exist."""
        self._directory = directory

    def describe(self) -> str:
        """Name this machine."""
        return machine()

    def measure(self, experiment: Experiment, announce: Announce = silent) -> list[Result]:
        """See `Device`; the models are read where they are."""
        check_models(experiment)
        models = {c.name: os.path.relpath(c.model, self._directory) for c in (experiment.float_, *experiment.candidates)}
        with writing(self._directory):
            write_experiment(experiment, self._directory, models)
            try:
                record = run_experiment(self._directory, announce)
            except DeviceError as error:
                raise UserError(str(error)) from error
        return [result for result in results_of(experiment, record["results"]) if result is not None]

    def close(self) -> None:
        """Do nothing: what is in the directory belongs to the run."""
