"""A trace that is handed out again is the one that torch would make."""

import torch
from torch import nn

from calib.network.fold import trace_folded
from calib.network.graph import TracedModel
from calib.network.units import find_units
from deploy.lowering.export import export_float
from deploy.run import float_onnx
from tests.smpq import tunable
from tests.tiny_task import Net, images
from tests.traced_once import traced_once


def exported(net, directory):
    traced = TracedModel(net, (images(3)[0][:2],), {1, 8})
    path = directory / "model.onnx"
    export_float(traced, find_units(traced)[0], path)
    return path.read_bytes(), traced


def test_a_network_whose_norms_are_folded_is_as_without(tmp_path):
    class Same(tunable.Normed):
        """What is not listed is traced each time."""

    same = Same().eval()
    same.load_state_dict(tunable.network().state_dict())
    found = []
    with traced_once():
        for net in (same, tunable.network(), tunable.network()):
            traced, folded = trace_folded(net, (tunable.images(1, 2),), {1, 8})
            export_float(traced, find_units(traced)[0], tmp_path / "model.onnx")
            found.append(((tmp_path / "model.onnx").read_bytes(), folded))
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) == 3


def test_exports_are_as_without(tmp_path):
    net = Net().eval()
    traced = TracedModel(net, (images(3)[0][:2],), {1, 8})
    units, _ = find_units(traced)
    export_float(traced, units, tmp_path / "fresh", "one")
    with traced_once():
        for name, fingerprint in (("first", "one"), ("again", "one"), ("other", "two")):
            float_onnx.export_float(traced, units, tmp_path / name, fingerprint)
    found = {name: (tmp_path / name).read_bytes() for name in ("fresh", "first", "again", "other")}
    assert found["fresh"] == found["first"] == found["again"] != found["other"]


def nets():
    for seed in (1, 2):
        torch.manual_seed(seed)
        yield Net().eval()


def test_programs_and_files_are_as_without(tmp_path):
    class Same(Net):
        """What is not listed is traced each time."""

    for net in nets():
        same = Same().eval()
        same.load_state_dict(net.state_dict())
        fresh, _ = exported(same, tmp_path)
        with traced_once():
            (first, _), (again, traced) = exported(net, tmp_path), exported(net, tmp_path)
        assert first == again == fresh
        assert traced.state["p_second_weight"].data_ptr() == net.second.weight.data_ptr()
        assert torch.equal(traced.run((images(3)[0],)), net(images(3)[0]))


def test_a_copy_is_nobody_elses(tmp_path):
    (net, other) = nets()
    with traced_once():
        _, traced = exported(net, tmp_path)
        with torch.no_grad():
            net.head.bias += 1
        for node in traced.steps:
            node.name = f"mine_{node.name}"
        before, _ = exported(other, tmp_path)
        other.second = nn.Conv2d(4, 8, 3, padding=1, stride=2, bias=False)
        after, _ = exported(other, tmp_path)
    assert b"mine_" not in before
    assert before != after
