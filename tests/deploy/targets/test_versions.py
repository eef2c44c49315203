"""Which version of a runtime a target is for, and which is installed."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace

import pytest

from calib.errors import UserError
from calib.formats.format import Format
from deploy.backends import backend_of
from deploy.targets.families import FAMILIES
from deploy.targets.rules import CONVOLUTIONS, Capability, version_fits
from deploy.targets.tables import overview
from deploy.targets.target import (
    capability,
    device_names,
    target_from_name,
    versioned_names,
)


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
        seen = [operator for operator in CONVOLUTIONS if not operator.endswith("3d")]
        return [capability(target, operator, Format.from_text("w8a8"), 576, 64) for operator in seen]

    for answer in answers("jetson-orin", "sm87"):
        assert answer.status == "unknown"
        assert not answer.may_fail, "the engines that are measured first try it"
        assert "take tensorrt-10.7 --sm sm87" in answer.note
    for name, sm in (("tensorrt-10.7", "sm87"), ("tensorrt-10.3", "sm86"), ("jetson-orin-7.2", "sm87")):
        assert {answer.status for answer in answers(name, sm)} == {"native"}
    newer = target_from_name("tensorrt-10.7", ["sm87"])
    volumes = capability(newer, "conv3d", Format.from_text("w8a8"), 576, 64)
    assert (volumes.status, volumes.may_fail) == ("unknown", True), "nobody has looked"
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


def test_a_tensorrt_that_is_too_old(installed):
    installed({"tensorrt": "8.6.1"}, "8.6.1")
    with pytest.raises(UserError, match=r"TensorRT 8\.6\.1 is installed here: 10\.3 or a newer one"):
        backend_of(target_from_name("tensorrt")).check_builds_here()
