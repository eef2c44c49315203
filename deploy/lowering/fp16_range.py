"""Whether half precision holds what a network computes."""

from __future__ import annotations

from collections.abc import Sequence

from calib.calibrate import Calibration
from calib.errors import UserError
from calib.network.units import Unit

LARGEST = 65504.0
SMALLEST = 127 * 2.0**-24
"""Below this the step of 8-bit integers is below the smallest half."""


def check_fp16_range(calibration: Calibration, units: Sequence[Unit]) -> None:
    """Raise UserError when the input or the result of a layer does not fit half precision on the calibration data.

    Larger numbers become infinite in an engine whose float type is fp16, whatever format the layers have, and smaller
    ones zero.
    """
    for unit in units:
        for tensor in (*unit.inputs, *unit.calls):
            largest = calibration.largest(tensor)
            if largest > LARGEST or 0 < largest < SMALLEST:
                problem = f"reaches {largest:.3g}" if largest > 1 else f"stays below {largest:.3g}"
                raise UserError(
                    f"{tensor} around {unit.path} {problem} on the calibration data, and half precision holds "
                    f"{SMALLEST:.1g} to "
                    f"{LARGEST:.0f}: scale the model's values there, or take a target that computes in fp32"
                )
