"""A profile: what each kernel is for, the table, and the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import msgspec
import pytest

from calib.errors import UserError
from calib.files.storage import json_text
from deploy.backends import backend_of
from deploy.files.profile import ProfileFile
from deploy.report.profile_lines import profile_lines
from deploy.report.profile_plot import profile_svg
from deploy.stages.profiling import profile_of
from deploy.targets.target import target_from_name
from tests.deploy.report.profile_sample import PLANNED, RTX, TENSORRT_10, layer, profile, result


def test_what_the_kernels_of_tensorrt_10_are_for():
    record = profile(TENSORRT_10)
    assert [(kernel.role, kernel.units) for kernel in record.kernels] == [
        ("reformat", ()),  # in front of a quantiser, whose name it has
        ("quantize", ()),
        ("layer", ("stem",)),
        ("reformat", ()),
        ("layer", ("body",)),
        ("copy", ()),
        ("other", ()),
        ("copy", ()),
        ("layer", ("head",)),
    ]
    assert {path: (unit.planned, unit.found, unit.agrees) for path, unit in record.units.items()} == {
        "stem": ("w8a8", "int8", True),
        "body": ("w8a8", "fp16", False),
        "head": ("w4a16b32", "int4-weight-only", True),
    }


def test_what_the_kernels_of_tensorrt_rtx_are_for():
    record = profile(RTX)
    assert [(kernel.role, kernel.units) for kernel in record.kernels] == [
        ("quantize", ("stem",)),
        ("layer", ("stem",)),
        ("reformat", ()),
        ("copy", ()),
        ("layer", ("body",)),
        ("other", ("body",)),
        ("layer", ("head",)),
        ("reformat", ()),
    ]
    assert all(unit.agrees for unit in record.units.values())


def test_the_table_has_the_longest_first_and_the_sums():
    lines = profile_lines(profile(TENSORRT_10))
    assert lines[1].split()[:6] == ["0.3500", "35.0", "%", "layer", "w4a16b32", "int4-weight-only"]
    assert "fp16 (!)" in lines[2]
    text = "\n".join(lines)
    assert "   0.8500 85.0 %  layers of the model (3 kernels)\n" in text
    assert "   0.0700  7.0 %  reformatting (2 kernels)\n" in text
    assert "   0.0100  1.0 %  copying (2 kernels)\n" in text
    assert "Reformat Reformatting CopyNode for Input Tensor 0 to body\n" in text
    assert "not as planned (!): body: planned w8a8, found fp16\n" in text
    assert "a call takes 1 ms (0.500x of float); enqueueing it takes the host 0.25 ms, 25 % of that\n" in text


@pytest.mark.parametrize(
    ("enqueue_ms", "words"), [(0.95, "95 % of that: the GPU waits for the host"), (None, "was not measured")]
)
def test_the_share_of_the_launch(enqueue_ms, words):
    assert any(words in line for line in profile_lines(profile(RTX, enqueue_ms)))


def test_the_picture_is_a_file_of_its_own_with_a_bar_for_each_kernel():
    record = profile(TENSORRT_10, machine="a <b>oard\x1b[2J")
    root = ET.fromstring(profile_svg(record))
    space = "{http://www.w3.org/2000/svg}"
    bars = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert [bar.get("class") for bar in bars] == [kernel.role for kernel in record.kernels]
    widths = [float(bar.get("width")) for bar in bars]
    assert widths[8] == max(widths)
    assert widths[2] == pytest.approx(max(widths) * 0.2 / 0.35, abs=0.1)
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "0.3000 ms, 30.0 %  w8a8: fp16 (!)" in texts
    assert all(text.isprintable() for text in texts)


def test_many_kernels_are_cut_to_the_longest():
    many = tuple(
        layer("kgen", f"__myl_Add_myl0_{index}", "Half", "Half", ms=0.001 * (1 + index)) for index in range(200)
    )
    svg = profile_svg(profile(many))
    assert svg.count("<title>") == 120
    assert "80 shorter ones are left out" in svg
    assert "__myl_Add_myl0_199" in svg
    assert "__myl_Add_myl0_79:" not in svg


def test_layers_without_times_are_no_profile():
    target = target_from_name("tensorrt-rtx")
    untimed = tuple(msgspec.structs.replace(each, ms=None) for each in RTX)
    for layers in (None, (), untimed):
        failed = result(layers, notes=["the profiler failed: RuntimeError"])
        with pytest.raises(
            UserError, match=r"layers were not told \(the profiler failed: RuntimeError\): measure it again"
        ):
            profile_of(target, failed, PLANNED, "a board", "a policy")


def test_the_file_is_checked_when_it_is_read():
    record = profile(RTX)
    text = json_text(record)
    assert msgspec.json.decode(text, type=ProfileFile) == record
    with pytest.raises(msgspec.ValidationError, match=r"come to 0\.82"):
        msgspec.json.decode(text.replace('"profiled_ms": 0.8', '"profiled_ms": 0.9'), type=ProfileFile)
    with pytest.raises(msgspec.ValidationError, match="which is not in units"):
        msgspec.json.decode(text.replace('"units": [\n    "head"', '"units": [\n    "tail"'), type=ProfileFile)


@pytest.mark.parametrize(
    ("target", "instead"),
    [
        ("ort-cpu", "enable_profiling"),
        ("ort-cuda", "enable_profiling"),
        ("ort-tensorrt", "--target tensorrt"),
        ("simulate", "no engine"),
    ],
)
def test_targets_without_a_profile_name_what_to_use(target, instead):
    with pytest.raises(UserError, match=instead):
        backend_of(target_from_name(target)).check_profiled()
    backend_of(target_from_name("jetson-orin")).check_profiled()
