"""Open engines as a device does, in a process of its own: prints what became of each as JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runner import ort as on_device


def launches() -> int:
    """How often a CUDA graph was launched, if the library is the stub."""
    try:
        return ctypes.c_int.in_dll(ctypes.CDLL("libcudart.so.13"), "stub_launches").value
    except (OSError, ValueError):
        return 0


def launched(engine: Any) -> int:
    before = launches()
    engine.run()
    return launches() - before


def opened(model: Path, settings: dict[str, Any], cache: Path, shape: list[int]) -> dict[str, Any]:
    try:
        engine: Any = on_device.open_ort_engine(
            model, settings, {settings.pop("input"): np.ones(shape, np.float32)}, cache
        )
    except Exception as error:  # noqa: BLE001
        return {"error": type(error).__name__, "text": str(error)}
    session = engine._session
    found: dict[str, Any] = {
        "providers": session.get_providers(),
        "options": session.get_provider_options(),
        "outputs": {name: list(array.shape) for name, array in engine.outputs().items()},
        "ms": engine.time(2),
        "clock": engine.clock,
        "launched": launched(engine),
    }
    engine.use_graph(False)
    found |= {"clock_left": engine.clock, "launched_left": launched(engine)}
    engine.use_graph(True)
    return {**found, "clock_again": engine.clock, "launched_again": launched(engine)}


if __name__ == "__main__":
    on_device._ERRORS_ONLY = 2  # type: ignore[misc]  # warnings too
    jobs = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps([opened(Path(job[0]), job[1], Path(job[2]), job[3]) for job in jobs]))
