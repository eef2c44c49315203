"""Whether engines of a target can be timed on this machine."""

from __future__ import annotations

from calib.errors import UserError
from deploy.backends import onnxruntime as ort_backend
from deploy.runner.cuda import open_cuda
from deploy.runner.errors import DeviceError
from deploy.targets.target import Target, check_builds_here


def why_not_measurable(target: Target) -> str | None:
    """Return why this machine cannot time engines of the target, None when it can."""
    if target.lowering == "simulate":
        return "simulate has no engine to time"
    if target.measurable:
        return None
    try:
        check_builds_here(target)
        if target.runtime == "onnxruntime":
            ort_backend.check_providers(target.providers)
        else:
            open_cuda().close()
    except UserError as error:
        return str(error)
    except DeviceError as error:
        return f"timing an engine of {target.name} needs its GPU ({error}): name the machine that has it with --device, or use smpq bundle"
    return None
