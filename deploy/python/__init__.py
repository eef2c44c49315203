"""The whole job from Python: `from deploy import optimize`."""

from __future__ import annotations
