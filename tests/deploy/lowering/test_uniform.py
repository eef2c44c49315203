"""A plan depends on the policy alone, and not on the policies that were asked for before it."""

from __future__ import annotations

import pytest
import torch

from calib.formats.format import Format
from deploy.backends import backend_of
from deploy.targets.target import target_from_name
from tests.deploy.networks import residual


@pytest.mark.parametrize("name", ["ort-cpu", "tensorrt-rtx"])
def test_a_uniform_plan_reached_layer_by_layer_is_the_uniform_plan(name, tmp_path):
    exported, target = residual(), target_from_name(name)
    (tmp_path / "once").mkdir()
    once = exported.lower(exported.formats("w8a8"), name, tmp_path / "once")
    formats = exported.formats("fp32")
    _, quantizer = exported.plan(formats, name)
    outputs = []
    for unit in exported.units:
        formats[unit.path] = Format.from_text("w8a8")
        outputs.append(quantizer.run(formats, (exported.batch,)))
    path = tmp_path / once.path.name
    backend_of(target).lower(exported.path, quantizer.plan(formats), exported.units, path, 1)
    assert path.read_bytes() == once.path.read_bytes()
    assert torch.equal(outputs[-1], torch.from_numpy(once.expected))
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs), "each layer changes it"
