"""TensorRT and TensorRT-RTX: build a plan from an ONNX file, read back its kernels, check them against the policy.

One code path serves both runtimes. Networks are strongly typed and no precision is ever set: the types written in the
ONNX file are the types of the engine.
"""

from deploy.backends.base import BuildFailed, Built
from deploy.backends.tensorrt.backend import TensorRt, TensorRtRtx
from deploy.backends.tensorrt.build import build_plan
from deploy.backends.tensorrt.check import UnitCheck, check_units
from deploy.backends.tensorrt.execution import PlanRunner, gpu_sm, open_plan
from deploy.backends.tensorrt.kernels import kernels_from_log
from deploy.backends.tensorrt.runtime import RUNTIMES, load

__all__ = [
    "RUNTIMES", "BuildFailed", "Built", "PlanRunner", "TensorRt", "TensorRtRtx", "UnitCheck", "build_plan",
    "check_units", "gpu_sm", "kernels_from_log", "load", "open_plan",
]  # fmt: skip
