"""The stages of a run: each reads what the earlier ones left in the run directory and adds its own files."""

from __future__ import annotations

from deploy.run.float_onnx import FLOAT_MODEL, export_float_model
from deploy.stages.choosing import Solution, search, solve
from deploy.stages.making import build, export, measure, verify
from deploy.stages.policies import read_policy, write_policy
from deploy.stages.scoring import score, static_ceilings, write_space

__all__ = [
    "FLOAT_MODEL", "Solution", "build", "export", "export_float_model", "measure", "read_policy", "score", "search",
    "solve", "static_ceilings",
    "verify", "write_policy", "write_space",
]  # fmt: skip
