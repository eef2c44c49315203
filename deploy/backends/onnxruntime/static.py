"""What onnxruntime makes of a float model by itself: its `quantize_static`, the yardstick for every plan."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from calib.errors import first_line
from deploy.backends.base import BuildFailed

Feeds: TypeAlias = dict[str, npt.NDArray[Any]]
"""One batch by input name."""


def quantize_plainly(float_model: Path, out: Path, feeds: Iterable[Feeds]) -> BuildFailed | None:
    """Write the float model quantised by `onnxruntime.quantization.quantize_static` with Q/DQ nodes and a scale for
    each output channel; all else is as it is by default: 8-bit integers, ranges from minimum to maximum.

    `feeds` are calibration batches. Returns the reason where onnxruntime cannot do it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type information
        """Gives one batch after the other."""

        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> Feeds | None:
            """Return the next batch, None behind the last."""
            return next(self._left, None)

    try:
        with _silent():
            quantize_static(str(float_model), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base class
        return BuildFailed(first_line(error))
    return None


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a session as onnxruntime makes one by itself: no optimiser is left out for our plans."""
    return {**settings, "disabled_optimizers": [], "session_config": {}}


@contextmanager
def _silent() -> Iterator[None]:
    """Keep advice about preparing the model off the terminal: it is not for whoever looks at a curve."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
