"""What can be chosen by name in the search; importing it loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calib.choices import Registry

VALUES = ("kl", "loss", "metric")
"""What a policy may be judged by: `smpq.value.value.PolicyValue` says how."""

ESTIMATORS: Registry[Callable[..., Any]] = Registry(
    {
        "adaptive": "smpq.scoring.estimators.adaptive",
        "permutation": "smpq.scoring.estimators.permutation",
        "antithetic": "smpq.scoring.estimators.permutation",
        "exact": "smpq.scoring.estimators.exact",
    }
)
