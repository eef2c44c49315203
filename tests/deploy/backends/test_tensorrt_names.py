"""What nobody could run here still fits: every name we use is in the published bindings of each version."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.deploy.backends.builds import needs_rtx
from tests.deploy.backends.used_names import RTX_ONLY, USED, missing_in

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(__file__).parent / "data"
VERSIONS = ("tensorrt-10.3.0", "tensorrt-10.16.0", "tensorrt-11.4.0", "tensorrt-rtx-1.7.1")
PYTHON = (str, bytes, dict, list, Path, re, re.compile(""), hashlib, hashlib.sha256(), json, os, np, np.empty(0), np.typing, time, tempfile,
          threading, statistics, importlib)  # fmt: skip


def sources() -> list[ast.Module]:
    """The files that use a TensorRT module; the others of the back end only call these."""
    return [ast.parse(file.read_text("utf-8")) for file in sorted((ROOT / "deploy/on_device").glob("trt*.py"))]


def flat(table: dict[str, tuple[str, ...]]) -> set[str]:
    return {name for names in table.values() for name in names}


def attributes(trees: list[ast.Module]) -> set[str]:
    """All attributes that are read, set or called, and those asked for by name."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    asked = {
        node.args[1].value
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    }
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)} | asked


def ours() -> set[str]:
    """Methods, fields and attributes that our own classes on the device define."""
    found = set()
    for file in (ROOT / "deploy/on_device").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                found.add(node.attr)
    return found


def test_the_list_is_what_the_source_uses():
    trees = sources()
    overridden = {"log", "report_layer_time"}
    methods = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert overridden <= methods
    used, listed = attributes(trees) | overridden, flat(USED) | flat(RTX_ONLY)
    assert listed <= used, f"no longer used: {sorted(listed - used)}"
    python = {name for item in PYTHON for name in dir(item)} | {"__members__", "NDArray"}
    unknown = used - listed - python - ours()
    assert not unknown, f"neither Python's nor ours: add to USED, if every version of TensorRT has it: {sorted(unknown)}"


def test_nothing_else_uses_a_tensorrt_module():
    for file in (ROOT / "deploy").rglob("*.py"):
        if file.parent.name == "on_device" and file.name.startswith("trt"):
            continue
        text = file.read_text("utf-8")
        assert not re.search(r"^\s*(import|from) tensorrt", text, re.MULTILINE), file
        assert set(re.findall(r"\bmodule\.(\w+)", text)) <= {"__version__"} or "backends/tensorrt" not in file.as_posix(), file


@pytest.mark.parametrize("version", VERSIONS)
def test_the_published_bindings_have_them(version):
    names = set((DATA / f"{version}.txt").read_text("utf-8").split())
    # The linker keeps one copy of two texts of which one is the end of the other, as of INPUT and CONDITIONAL_INPUT.
    ends = {name.rsplit("_", 1)[-1] for name in names if name.isupper()}
    needed = (flat(USED) | USED.keys()) - {""} | (flat(RTX_ONLY) if "rtx" in version else set())
    assert sorted(needed - names - ends) == []


@pytest.mark.parametrize("version", VERSIONS[:3])
def test_the_data_can_tell(version):
    """What is known to be missing is missing: else the test above would say nothing."""
    names = set((DATA / f"{version}.txt").read_text("utf-8").split())
    assert not names & flat(RTX_ONLY)
    assert ("int8_calibrator" in names) == version.startswith("tensorrt-10")


@needs_rtx
def test_the_installed_tensorrt_rtx_has_them_on_the_same_classes():
    module = importlib.import_module("tensorrt_rtx")
    assert missing_in(module) == []
    assert hasattr(module, "ComputeCapability")
    assert [name for owner, names in RTX_ONLY.items() if owner for name in names if not hasattr(getattr(module, owner), name)] == []
