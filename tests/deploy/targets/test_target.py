"""Targets by name, and capability tables against what onnxruntime really makes of a graph."""

from __future__ import annotations

import contextlib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from calib.errors import UserError
from calib.formats.format import FP16, FP32, Format
from deploy.backends import backend_of
from deploy.targets.families import FAMILIES
from deploy.targets.rules import LayerKind, version_fits
from deploy.targets.tables import overview
from deploy.targets.target import (
    CONVOLUTIONS,
    LINEARS,
    OPERATORS,
    Capability,
    CapabilityRow,
    Target,
    capability,
    capability_of,
    compute_capabilities_of,
    device_names,
    table,
    target_from_name,
    versioned_names,
)
from tests.deploy.backends.graphs import Layer, one_layer

W8A8 = Format(8, 8)
ONNXRUNTIME_FORMATS = (
    "fp32", "fp16", "w8a8", "w4a8", "w8a16", "w4a16",
    "w4a16b8", "w4a16b16", "w4a16b32", "w4a16b64", "w4a16b128", "w4a16b256", "w8a16b32",
)  # fmt: skip
INTEGER_OPERATORS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}


def status(target: str, operator: str, text: str, in_features: int = 256) -> str:
    return capability(target_from_name(target), operator, Format.from_text(text), in_features).status


@pytest.mark.parametrize("name", [*FAMILIES, *versioned_names(), *device_names()])
def test_every_target_offers_its_defaults_and_its_reference(name):
    target = target_from_name(name)
    assert target.name == name
    # ONNX Runtime computes no integer convolutions on CUDA, and TensorRT 10.3 fails on some on Orin
    operators = LINEARS if name in ("ort-cuda", "jetson-orin") else OPERATORS
    for format_ in (*target.default_formats, target.reference):
        for operator in operators:
            assert capability(target, operator, format_, 256).status == "native"
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
    formats = [FP16, FP32, *(Format.from_text(f"w{bits}{rest}") for bits in range(2, 9) for rest in rests)]
    layers = [LayerKind(operator, 256, outputs) for operator in OPERATORS for outputs in (256, 255)]
    used = {capability_of(target, layer, format_).note for target in targets for layer in layers for format_ in formats}
    small = [LayerKind(operator, 256, 256, 3, rows=1) for operator in OPERATORS]
    used |= {capability_of(target, layer, W8A8).note for target in targets for layer in small}
    assert not [row for target in targets for row in table(target) if row.note not in used]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_format_is_decided_by_a_rule_with_its_source(name):
    for target in variants(name):
        assert all(row.source for row in table(target))
        for operator in OPERATORS:
            for text in ("fp16", "fp32", "w2a4", "w8a8", "w3a16", "w4a16", "w8a16", "w4a16b2", "w4a16b256", "w8a16b32"):
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


def test_versions():
    target = target_from_name("tensorrt-10.3", ["sm87"])
    assert (target.name, target.version, target.runtime) == ("tensorrt-10.3", "10.3", "tensorrt")
    with pytest.raises(
        UserError,
        match=r"tensorrt-10\.3, tensorrt-10\.7, tensorrt-10\.13, tensorrt-10\.16, tensorrt-11\.4, jetson-orin, ",
    ):
        target_from_name("tensorrt-9.1")
    with pytest.raises(UserError, match=r"TensorRT 10\.3 does not know sm120: it came with TensorRT 10.8"):
        target_from_name("tensorrt-10.3", ["sm120"])
    assert target_from_name("tensorrt-10.16", ["sm120"]).compute_capabilities == ("sm120",)


def test_int8_convolutions_on_jetpack_6():
    """TensorRT 10.3 fails on some on Orin alone; 10.7 is what its users install for them."""

    def answers(name: str, sm: str) -> list[Capability]:
        target = target_from_name(name, [sm])
        return [capability(target, operator, W8A8, 576, 64) for operator in CONVOLUTIONS]

    for answer in answers("jetson-orin", "sm87"):
        assert answer.status == "unknown"
        assert not answer.may_fail, "the engines that are measured first try it"
        assert "take tensorrt-10.7 --sm sm87" in answer.note
    for name, sm in (("tensorrt-10.7", "sm87"), ("tensorrt-10.3", "sm86"), ("jetson-orin-7.2", "sm87")):
        assert {answer.status for answer in answers(name, sm)} == {"native"}
    newer = target_from_name("tensorrt-10.7", ["sm87"])
    assert capability(newer, "linear", Format.from_text("w8a16b128"), 256).status == "unknown", "refused before 10.4"
    with pytest.raises(UserError, match=r"TensorRT 10\.7 does not know sm120"):
        target_from_name("tensorrt-10.7", ["sm120"])


@pytest.mark.parametrize(
    ("version", "condition", "fits"),
    [
        ("10.3", "<10.12", True),
        ("10.16.0.72", "<10.12", False),
        ("10.12", "<10.12", False),
        ("11.4", ">=10.3,<11", False),
        ("10.3.0", ">=10.3,<11", True),
    ],
)
def test_version_conditions(version, condition, fits):
    assert version_fits(version, condition) is fits


def test_a_wrong_version_condition_is_a_bug():
    with pytest.raises(ValueError, match="wrong version condition"):
        version_fits("10.3", "10.3")


@pytest.fixture
def installed(monkeypatch):
    """Install a TensorRT: the packages with their versions, and that of the module, None for one that does not load, or
    for none.
    """

    def install(packages: dict[str, str], module: str | None, *, loads: bool = True) -> list[str]:
        asked: list[str] = []

        def version(name: str) -> str:
            if name not in packages:
                raise metadata.PackageNotFoundError(name)
            return packages[name]

        def load(name: str) -> SimpleNamespace:
            asked.append(name)
            if not loads:
                raise OSError("libnvinfer.so.10: cannot open shared object file")
            if module is None:
                raise ModuleNotFoundError(name)
            return SimpleNamespace(__version__=module)

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr("deploy.targets.installed.import_module", load)
        return asked

    return install


def test_the_installed_tensorrt_is_the_one_of_its_target(installed):
    installed({"tensorrt": "10.3.0"}, "10.3.0")
    target = target_from_name("tensorrt", ["sm87"])
    assert target.version == "10.3.0"
    assert capability(target, "linear", Format.from_text("w4a16b128"), 256).status == "unknown"
    backend_of(target_from_name("jetson-orin")).check_builds_here()
    backend_of(target).check_builds_here()
    with pytest.raises(UserError, match=r"jetson-thor is TensorRT 11\.4, and 10\.3\.0 is installed here"):
        backend_of(target_from_name("jetson-thor")).check_builds_here()


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt-cu12", "tensorrt-cu13", None])
def test_tensorrt_is_found_under_every_name_that_it_is_installed_by(installed, package):
    """None: Jetson's package of the system, of which Python finds no record."""
    installed({package: "10.16.0.72"} if package else {}, "10.16.0.72")
    backend_of(target_from_name("tensorrt-10.16")).check_builds_here()
    assert target_from_name("tensorrt").version == "10.16.0.72"
    with pytest.raises(UserError, match=r"TensorRT 10\.3, and 10\.16\.0\.72 is installed here"):
        backend_of(target_from_name("tensorrt-10.3")).check_builds_here()


def test_the_module_that_loads_counts_and_not_what_a_package_says(installed):
    installed({"tensorrt": "11.4.0"}, "10.16.0")
    backend_of(target_from_name("tensorrt-10.16")).check_builds_here()


def test_a_tensorrt_that_does_not_load_is_there_all_the_same(installed):
    installed({"tensorrt-cu12": "10.16.0"}, "10.16.0", loads=False)
    backend_of(target_from_name("tensorrt-10.16")).check_builds_here()
    installed({}, None, loads=False)
    with pytest.raises(UserError, match="none is installed here"):
        backend_of(target_from_name("tensorrt-10.16")).check_builds_here()


def test_names_are_listed_without_loading_tensorrt(installed):
    asked = installed({}, "10.16.0")
    for name in (*FAMILIES, *versioned_names(), *device_names()):
        target_from_name(name, look=False)
    overview()
    for name in (*(name for name in FAMILIES if name != "tensorrt"), *versioned_names(), *device_names()):
        target_from_name(name)
    assert asked == []
    installed({"tensorrt-cu13": "11.4.0"}, "11.4.0")
    assert target_from_name("tensorrt").version == "11.4.0"
    assert asked == []


def test_without_tensorrt_a_device_builds_its_own_engines(installed):
    installed({}, None)
    backend_of(target_from_name("tensorrt")).check_builds_here()  # the back end says how to install it
    with pytest.raises(
        UserError, match=r"TensorRT 10\.3, and none is installed here: its engines are built on the device"
    ):
        backend_of(target_from_name("jetson-orin")).check_builds_here()


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
    answer = capability(target, "linear", W8A8, 256)
    assert Capability.from_json(answer.to_json()) == answer
    for row in table(target):
        assert CapabilityRow.from_json(row.to_json()) == row
    with pytest.raises(UserError, match="schema version"):
        Capability.from_json({})


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


def test_a_tensorrt_that_is_too_old(installed):
    installed({"tensorrt": "8.6.1"}, "8.6.1")
    with pytest.raises(UserError, match=r"TensorRT 8\.6\.1 is installed here: 10\.3 or a newer one"):
        backend_of(target_from_name("tensorrt")).check_builds_here()


def test_the_worst_compute_capability_counts():
    both = target_from_name("tensorrt-rtx", ["sm75", "sm86"])
    assert capability(both, "conv2d", W8A8, 576).status == "refused"
    assert capability(both, "linear_nd", Format.from_text("w8a16"), 256).status == "dequantized"
    assert capability(both, "linear", W8A8, 256).status == "native"
    assert capability(both, "linear", Format.from_text("w4a16b32"), 256).status == "refused"
    assert any(row.compute_capabilities for row in table(both))
    assert not any(row.compute_capabilities for row in table(target_from_name("tensorrt-rtx")))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("text", ["w2a8", "w3a8", "w4a8", "w8a4", "w7a7", "w3a16", "w5a16"])
def test_odd_widths_are_for_simulation_only(operator, text):
    assert status("simulate", operator, text) == "native"
    for name in ("ort-cpu", "tensorrt", "tensorrt-rtx"):
        assert status(name, operator, text) == "refused"


def found_in_onnxruntime(layer: Layer, path: Path) -> str:
    """What the optimised session computes the layer in, in the words of a capability table."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # saving an optimised model warns that it is for this machine only
    model = one_layer(layer, half=layer.format == FP16)
    onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization", "MatMulAddFusion"],
    )
    nodes = onnx.load(path).graph.node
    operators = {node.op_type for node in nodes}
    if operators & INTEGER_OPERATORS:
        return "native" if layer.format == W8A8 else "another format"
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    if products:
        bits = {attribute.name: attribute.i for attribute in products[0].attribute}["bits"]
        return "native" if bits == layer.format.weight_bits else "another format"
    if "DequantizeLinear" in operators:
        return "dequantized"
    if layer.format == FP16:
        return "another format" if "Cast" in operators else "native"
    return "native"


def test_a_scale_per_channel_runs_as_blocks_of_32(tmp_path):
    path = tmp_path / "optimised.onnx"
    assert found_in_onnxruntime(Layer("linear", Format.from_text("w4a16"), in_features=250), path) == "native"
    (node,) = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    assert {attribute.name: attribute.i for attribute in node.attribute}["block_size"] == 32


def test_int8_activations_with_a_relu_are_not_integer_in_onnxruntime(tmp_path):
    """Why the CPU target is affine: the symmetric scheme leaves a float convolution between Q and DQ."""
    common = {"integer_bias": True, "quantize_output": True, "relu": True}
    # A Relu is dropped only when the zero point is the smallest integer.
    affine = Layer("conv2d", W8A8, affine=True, zero_point=np.asarray(0, np.uint8), **common)
    assert found_in_onnxruntime(affine, tmp_path / "affine.onnx") == "native"
    symmetric = Layer("conv2d", W8A8, **common)
    assert found_in_onnxruntime(symmetric, tmp_path / "symmetric.onnx") == "dequantized"


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
        {"fewer_channels_than": 0}, {"fewer_channels_than": "16"}, {"outputs_not_divisible_by": True}, {"outputs_not_divisible_by": -8},
        {"may_fail": True}, {"channels_not_divisible_by": 8},
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
