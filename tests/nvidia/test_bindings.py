"""What nobody could run here still fits: what we read and call is in the real bindings of each version, with these
arguments.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.nvidia import installed
from tests.nvidia.calls import problems
from tests.nvidia.stubs import make_stubs

ROOT = Path(__file__).resolve().parents[2]
RTX = "rtx"
ONLY_RTX = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
"""Used where a compute capability was asked for, which only TensorRT-RTX takes."""


def sources() -> list[Path]:
    """The files that use a TensorRT module; the others of the back end only call these."""
    return sorted((ROOT / "deploy/runner").glob("trt*.py"))


@functools.cache
def described(version: str) -> dict[str, Any]:
    """The classes of bindings, read in a process of its own: only one version fits into one."""
    variables = dict(os.environ)
    if version == RTX:
        if importlib.util.find_spec("tensorrt_rtx") is None:
            pytest.skip("tensorrt-rtx is not installed")
        return _described("tensorrt_rtx", variables)
    place = installed.bindings(version)
    with tempfile.TemporaryDirectory() as folder:
        make_stubs([place / "tensorrt_bindings" / "tensorrt.so"], Path(folder))
        return _described("tensorrt_bindings", {**variables, "LD_LIBRARY_PATH": folder, "PYTHONPATH": str(place)})


def _described(module: str, variables: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("describe_bindings.py")), module]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("version", [*installed.BINDINGS, RTX])
def test_the_bindings_have_what_we_use(version):
    found = described(version)
    assert version == RTX or found["version"] == version
    elsewhere = set() if version == RTX else ONLY_RTX
    assert [text for file in sources() for text in problems(file, found["classes"], elsewhere)] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("builder.create_netwerk(1)", "has no create_netwerk"),
        ("builder.create_network(1, 2)", "create_network is"),
        ("builder.build_serialized_network(network)", "build_serialized_network is"),
        ("module.OnnxParser(network)", "OnnxParser is"),
        ("module.BuilderFlag.NO_SUCH_FLAG", "has no NO_SUCH_FLAG"),
        ("config.set_memory_pool_limit(pool=module.MemoryPoolType.WORKSPACE, size=1)", "set_memory_pool_limit is"),
        ("builder.create_builder_config().no_such_member", "has no no_such_member"),
        ("something.execute_async_v3(1)", "of what class"),
    ],
)
@pytest.mark.parametrize("version", [*installed.BINDINGS, RTX])
def test_the_bindings_can_tell(version, line, problem, tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(f"def wrong(module, builder, network, config, something):\n    {line}\n", "utf-8")
    (text,) = problems(file, described(version)["classes"], set())
    assert problem in text


@pytest.mark.parametrize("version", installed.BINDINGS)
def test_what_only_rtx_has_is_not_in_the_others(version):
    classes = described(version)["classes"]
    assert not ONLY_RTX & {name for members in classes.values() for name in members}


def test_nothing_else_uses_a_tensorrt_module():
    for file in (ROOT / "deploy").rglob("*.py"):
        if file in sources():
            continue
        text = file.read_text("utf-8")
        assert not re.search(r"^\s*(import|from) tensorrt", text, re.MULTILINE), file
        used = {
            node.attr
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and _is_module(node.value)
        }
        assert used <= {"__version__"} or "backends/tensorrt" not in file.as_posix(), file


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "module"
