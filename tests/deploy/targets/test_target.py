"""Targets by name, and capability tables against what onnxruntime really makes of a graph."""

from __future__ import annotations

import contextlib

import pytest

from calib.errors import UserError
from calib.formats.format import FP16, FP32, Format
from deploy.targets.families import FAMILIES
from deploy.targets.rules import CONVOLUTIONS, LINEARS, OPERATORS, CapabilityRow, LayerKind
from deploy.targets.target import (
    Target,
    capability,
    capability_of,
    compute_capabilities_of,
    device_names,
    table,
    target_from_name,
    versioned_names,
)

W8A8 = Format.from_text("w8a8")
ONNXRUNTIME_FORMATS = (
    "fp32", "fp16", "w8a8", "w4a8", "w8a16", "w4a16",
    "w4a16b8", "w4a16b16", "w4a16b32", "w4a16b64", "w4a16b128", "w4a16b256", "w8a16b32",
)  # fmt: skip


def status(target: str, operator: str, text: str, in_features: int = 256) -> str:
    return capability(target_from_name(target), operator, Format.from_text(text), in_features).status


_READ = ("onnxruntime", "tensorrt-rtx", "simulate")
"""Back ends whose kernels were read here."""


@pytest.mark.parametrize("name", [*FAMILIES, *versioned_names(), *device_names()])
def test_every_target_offers_its_defaults_and_its_reference(name):
    target = target_from_name(name)
    assert target.name == name
    # ONNX Runtime computes no integer convolutions on CUDA, TensorRT 10.3 fails on some on Orin, and nobody has looked
    # at those of TensorRT in three dimensions
    seen = CONVOLUTIONS if target.backend in _READ else [each for each in CONVOLUTIONS if not each.endswith("3d")]
    operators = LINEARS if name in ("ort-cuda", "jetson-orin") else (*seen, *LINEARS)
    for choice in (*target.default_choices, (target.reference,)):
        for operator in LINEARS if choice[0].weight_block is not None else operators:  # blocks are for linear layers
            assert any(capability(target, operator, format_, 256).status == "native" for format_ in choice)
    assert all(capability(target, operator, target.reference, 256).status == "native" for operator in OPERATORS)


def variants(name: str) -> list[Target]:
    """A family for each of its versions and compute capabilities, where they go together."""
    gpus = compute_capabilities_of(target_from_name(name))
    targets = [target_from_name(name)]
    for versioned in (name, *(each for each in versioned_names() if each.startswith(f"{name}-"))):
        for gpu in gpus:
            with contextlib.suppress(UserError):  # GPUs younger than the version
                targets.append(target_from_name(versioned, [gpu]))
    return targets


@pytest.mark.parametrize("name", FAMILIES)
def test_every_rule_of_a_table_decides_something(name):
    targets = variants(name)
    rests = ("a4", "a7", "a8", "a16", "a16b2", "a16b8", "a16b128", "a16b256")
    formats = [
        FP16,
        FP32,
        *map(Format.from_text, ("fp8", "wfp8a16", "wt7a8", "wt8a8", "wz4a16b32", "wm2.5a16b32", "wc2.5a16")),
    ]
    formats += [Format.from_text(f"w{bits}{rest}") for bits in range(1, 9) for rest in rests]
    layers = [LayerKind(operator, 256, outputs) for operator in OPERATORS for outputs in (256, 255)]
    cases = [(layer, format_) for layer in layers for format_ in formats]
    cases += [(LayerKind(operator, 256, 256, 3, rows=1), W8A8) for operator in OPERATORS]
    cases += [(LayerKind(operator, 256, 256, calls=2), Format.from_text("w4a16b128")) for operator in OPERATORS]
    used: set[str] = set()
    for target in targets:
        if any(row.note not in used for row in table(target)):  # most say what others have said
            used |= {capability_of(target, *case).note for case in cases}
    assert not [row for target in targets for row in table(target) if row.note not in used]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_format_is_decided_by_a_rule_with_its_source(name):
    for target in variants(name):
        assert all(row.source for row in table(target))
        for operator in OPERATORS:
            for text in (
                "fp16",
                "fp32",
                "fp8",
                "wfp8a16",
                "w1a2",
                "w1a16b32",
                "w2a4",
                "w8a8",
                "w3a16",
                "w4a16",
                "w8a16",
                "w4a16b2",
                "w4a16b256",
                "w8a16b32",
                "wz2a16b128",
                "wm2a16b128",
                "wm2.25a16b128",
                "wc2a16",
                "wc2.25a16",
            ):
                assert "has not been measured" not in capability(target, operator, Format.from_text(text), 256).note


def test_what_nobody_has_seen_is_unknown_and_not_native():
    blocks = Format.from_text("w4a16b128")
    assert capability(target_from_name("jetson-orin"), "linear", blocks, 256).status == "unknown"
    assert capability(target_from_name("jetson-thor"), "linear", blocks, 256).status == "unknown"
    assert capability(target_from_name("tensorrt-10.3", ["sm86"]), "linear", blocks, 256).status == "unknown"
    assert capability(target_from_name("tensorrt-10.16", ["sm86"]), "linear", blocks, 256).status == "native"
    assert (
        capability(target_from_name("tensorrt-11.4", ["sm87"]), "conv2d", Format.from_text("w4a16"), 576).status
        == "unknown"
    )
    # Rules for one version or GPU count only where these are known.
    assert capability(target_from_name("tensorrt-10.16"), "linear", blocks, 256).status == "native"


def test_devices_are_a_runtime_and_a_gpu():
    orin, thor = target_from_name("jetson-orin"), target_from_name("jetson-thor")
    assert (orin.family, orin.version, orin.compute_capabilities) == ("tensorrt", "10.3", ("sm87",))
    assert (thor.family, thor.version, thor.compute_capabilities) == ("tensorrt", "11.4", ("sm110",))
    assert "JetPack" in orin.description
    versions = {
        name: (target_from_name(name).version, target_from_name(name).compute_capabilities) for name in device_names()
    }
    assert versions["jetson-thor-7.0"] == ("10.13", ("sm110",))
    assert versions["jetson-thor-7.2"] == ("10.16", ("sm110",))
    assert versions["jetson-orin-7.2"] == ("10.16", ("sm87",))
    for name in device_names():  # the version is offered without a device too, and knows the GPU
        version, gpus = versions[name]
        assert target_from_name(f"tensorrt-{version}", gpus).compute_capabilities == gpus
    assert target_from_name("jetson-orin", ["SM87"]) == orin
    with pytest.raises(UserError, match="jetson-orin is sm87: leave out --sm"):
        target_from_name("jetson-orin", ["sm86"])


def test_the_float_engine_and_the_schemes_differ():
    ours, nvidia = target_from_name("ort-cpu"), target_from_name("tensorrt-rtx")
    assert (ours.reference, ours.activation_scheme) == (FP32, "affine")
    assert (ours.quantize_outputs, ours.quantize_skips) == (True, False)
    assert (nvidia.reference, nvidia.activation_scheme) == (FP16, "symmetric")
    assert (nvidia.quantize_outputs, nvidia.quantize_skips) == (False, True)
    assert nvidia.compute_capabilities == ("sm86", "sm89", "sm120")


def test_unknown_target_lists_the_names():
    with pytest.raises(UserError, match="ort-cpu, ort-cuda, ort-tensorrt, tensorrt, tensorrt-rtx, simulate"):
        target_from_name("openvino")


def test_compute_capabilities():
    assert target_from_name("tensorrt-rtx", ["SM120", "sm86", "sm120"]).compute_capabilities == ("sm120", "sm86")
    with pytest.raises(UserError, match="sm75, sm80, sm86, sm89, sm120, sm121"):
        target_from_name("tensorrt-rtx", ["sm87"])
    with pytest.raises(UserError, match="takes no compute capability"):
        target_from_name("ort-cpu", ["sm86"])
    assert target_from_name("tensorrt", ["sm86"]).compute_capabilities == ("sm86",)
    with pytest.raises(UserError, match="on the GPU itself: give one --sm"):
        target_from_name("tensorrt", ["sm86", "sm89"])


def test_json_round_trips():
    target = target_from_name("tensorrt-rtx", ["sm89"])
    for row in table(target):
        assert CapabilityRow.from_json(row.to_json()) == row


def test_a_wrong_rule_is_a_bug():
    with pytest.raises(ValueError, match="wrong rule"):
        CapabilityRow.from_json({"operators": ["conv9d"], "formats": ["w8a8"], "status": "native", "note": ""})


def test_an_unknown_operator_stays_float():
    for name in FAMILIES:
        target = target_from_name(name)
        assert capability(target, "lstm", target.reference, 256).status == "native"
        answer = capability(target, "lstm", W8A8, 256)
        assert answer.status == "refused"
        assert "lstm" in answer.note


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_must_divide_the_inputs(name):
    answer = capability(target_from_name(name), "linear", Format.from_text("w4a16b128"), 250)
    assert answer.status == "refused"
    assert "do not divide the 250 inputs" in answer.note


def test_one_single_block_is_no_block():
    assert status("tensorrt-rtx", "linear", "w4a16b128", 128) == "refused"
    assert status("tensorrt-rtx", "linear", "w4a16b128", 256) == "native"
    assert status("ort-cpu", "linear", "w4a16b128", 128) == "native"


def test_four_bits_come_in_pairs():
    target, w4 = target_from_name("tensorrt-rtx"), Format.from_text("w4a16")
    assert capability(target, "linear", w4, 33, out_features=33).status == "refused"
    assert capability(target, "linear", w4, 33, out_features=32).status == "dequantized"
    assert capability(target, "conv2d", Format.from_text("w8a16"), 33, out_features=33).status == "dequantized"


def test_tensorrt_10_wants_an_even_last_dimension():
    blocks, channels = Format.from_text("w4a16b128"), Format.from_text("w4a16")
    old, new = target_from_name("tensorrt-10.16"), target_from_name("tensorrt-11.4")
    assert capability(old, "linear", blocks, 256, 1001).status == "refused"
    assert capability(old, "linear", blocks, 256, 1000).status == "native"
    assert capability(new, "linear", blocks, 256, 1001).status == "native"
    assert "width of the kernel" in capability(old, "conv2d", channels, 576, 64).note
    assert capability(new, "conv2d", channels, 576, 64).status == "unknown"


def test_the_worst_compute_capability_counts():
    both = target_from_name("tensorrt-rtx", ["sm75", "sm86"])
    assert capability(both, "conv2d", W8A8, 576).status == "refused"
    assert capability(both, "linear_nd", Format.from_text("w8a16"), 256).status == "dequantized"
    assert capability(both, "linear", W8A8, 256).status == "native"
    assert capability(both, "linear", Format.from_text("w4a16b32"), 256).status == "refused"
    assert any(row.compute_capabilities for row in table(both))
    assert not any(row.compute_capabilities == ("sm75",) for row in table(target_from_name("tensorrt-rtx")))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("text", ["w1a8", "w2a8", "w3a8", "w4a8", "w8a2", "w7a7", "w3a16", "w5a16", "w2a16b8"])
def test_odd_widths_are_for_simulation_only(operator, text):
    blocks_of_a_convolution = "conv" in operator and "b" in text
    assert status("simulate", operator, text) == ("refused" if blocks_of_a_convolution else "native")
    for name in ("ort-cpu", "tensorrt", "tensorrt-rtx"):
        assert status(name, operator, text) == "refused"


@pytest.mark.parametrize(
    ("layer", "status"),
    [
        (LayerKind("conv2d", 147, 64, 3), "unknown"),
        (LayerKind("conv2d", 576, 8, 64), "unknown"),
        (LayerKind("conv2d", 144, 16, 16), "native"),
        (LayerKind("conv2d", 576), "native"),
        (LayerKind("depthwise_conv2d", 9, 32, 1), "native"),
        (LayerKind("depthwise_conv2d", 9, 36, 1), "unknown"),
        (LayerKind("grouped_conv2d", 36, 12, 4), "unknown"),
        (LayerKind("linear", 256, 256, 256, rows=1), "unknown"),
        (LayerKind("linear", 256, 256, 256, rows=8), "native"),
        (LayerKind("linear", 256, 256, 256), "native"),
        (LayerKind("linear_nd", 256, 256, 256), "native"),
    ],
    ids=str,
)
def test_layers_over_which_tensorrt_may_refuse_an_engine(layer, status):
    for name in ("tensorrt", "tensorrt-10.3", "jetson-orin-7.2"):
        answer = capability_of(target_from_name(name), layer, W8A8)
        assert answer.status == status
        assert answer.may_fail == (status == "unknown")
    answer = capability_of(target_from_name("tensorrt-rtx", ["sm89"]), layer, W8A8)
    assert not answer.may_fail, "tensorrt-rtx has been seen to build them"


@pytest.mark.parametrize(
    "wrong",
    [
        {"fewer_channels_than": 0}, {"fewer_channels_than": "16"}, {"outputs_not_divisible_by": True},
        {"outputs_not_divisible_by": -8}, {"may_fail": True}, {"channels_not_divisible_by": 8},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_conditions_of_a_rule_are_a_bug(wrong):
    row = {
        "operators": ["linear"],
        "formats": ["w8a8"],
        "status": "native",
        "note": "",
        "basis": "docs",
        "source": "a page",
    }
    assert CapabilityRow.from_json({**row, "fewer_channels_than": 16}).fewer_channels_than == 16
    with pytest.raises(ValueError, match="wrong rule"):
        CapabilityRow.from_json({**row, **wrong})
