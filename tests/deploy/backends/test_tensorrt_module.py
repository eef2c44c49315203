"""TensorRT under its own name takes the same path as TensorRT-RTX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from tests.deploy.backends.builds import W4B32, W8A8, needs_rtx
from tests.deploy.backends.graphs import CHANNELS, Graph, Layer, add_layer, one_layer
from tests.deploy.backends.test_tensorrt import ROOT

STAND_IN_BUILD = """
import json, sys
from pathlib import Path
from calib.formats.format import Format
from deploy.backends.tensorrt import build_plan, check_units, load
folder = Path(sys.argv[1])
assert load("tensorrt").__name__ == "tensorrt"
found = {}
for name, text in (("conv", "w8a8"), ("linear", "w4a16b32")):
    for runtime in ("tensorrt", "tensorrt-rtx"):
        record = build_plan(folder / f"{name}.onnx", folder / f"{name}.plan", runtime, cache=folder / "cache")
        (check,) = check_units(record.layers, {"unit": Format.from_text(text)})
        found[f"{runtime} {name}"] = [check.found, check.agrees]
again = build_plan(folder / "conv.onnx", folder / "conv.plan", "tensorrt", cache=folder / "cache")
timed = build_plan(folder / "linear.onnx", folder / "linear.plan", "tensorrt", batch_sizes=(1, 2, 4), \
cache=folder / "cache")
caches = list((folder / "cache").glob("timing-*.cache"))
assert len(caches) == 1, caches
assert (again.row.from_cache, timed.row.from_cache) == (True, False)
free = build_plan(folder / "free.onnx", folder / "free.plan", "tensorrt", batch_sizes=(1, 4, 16))
assert check_units(free.layers, {"unit": Format.from_text("w8a8")})[0].agrees
failed = build_plan(folder / "refused.onnx", folder / "refused.plan", "tensorrt")
print(json.dumps([found, failed.reason]))
"""


@needs_rtx
def test_the_tensorrt_module_takes_the_same_path(tmp_path):
    """Both modules in one process, over a stand-in for TensorRT's own library where somebody provides one."""
    shared = Path(os.environ.get("SMPQ_SHARED", ROOT.parent / "shared"))
    script = shared / "tools/tensorrt_stand_in.sh"
    if not script.is_file():
        pytest.skip("no stand-in for TensorRT: set SMPQ_SHARED to the folder that has tools/tensorrt_stand_in.sh")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    try:
        made = subprocess.run(
            ["bash", str(script), str(tmp_path / "stand-in")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the bindings of TensorRT did not install within two minutes")
    if made.returncode:
        pytest.skip(f"the bindings of TensorRT do not install here: {made.stderr[-300:]}")
    onnx.save(one_layer(Layer("conv2d", W8A8), half=True), tmp_path / "conv.onnx")
    onnx.save(one_layer(Layer("linear", W4B32), half=True), tmp_path / "linear.onnx")
    onnx.save(one_layer(Layer("conv2d", W4B32), half=True), tmp_path / "refused.onnx")
    free = Graph(TensorProto.FLOAT16)
    onnx.save(
        free.model({"x": ("n", CHANNELS, 8, 8)}, [add_layer(free, Layer("conv2d", W8A8), "x")]), tmp_path / "free.onnx"
    )
    result = subprocess.run(
        ["bash", "-c", 'source "$1" && exec "$2" -c "$3" "$4"', "bash",
         str(tmp_path / "stand-in/env.sh"), sys.executable, STAND_IN_BUILD, str(tmp_path)],
        cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found, reason = json.loads(result.stdout.splitlines()[-1])
    assert found == {
        f"{runtime} {name}": [kind, True]
        for runtime in ("tensorrt", "tensorrt-rtx")
        for name, kind in (("conv", "int8"), ("linear", "int4-weight-only"))
    }
    assert "blocking dimension" in reason
