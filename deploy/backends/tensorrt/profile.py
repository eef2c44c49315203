"""What the kernels of a measured plan are for, beside what was planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calib.files.storage import plain
from calib.formats.format import Format
from deploy.backends.tensorrt.check import check_units
from deploy.backends.tensorrt.kernels import PlanKernel
from deploy.backends.tensorrt.roles import role_of
from deploy.devices.messages import Layer
from deploy.files.profile import ProfiledKernel, ProfiledUnit


def profiled(
    layers: Sequence[Layer], planned: Mapping[str, Format]
) -> tuple[tuple[ProfiledKernel, ...], dict[str, ProfiledUnit]]:
    """Return the kernels in the order in which they run, and the layers of the model by the name of the ONNX node."""
    kernels = [PlanKernel.from_json(plain(layer)) for layer in layers]
    checks = check_units(kernels, planned)
    computing = {(check.kernel, check.path) for check in checks}
    rows = tuple(_profiled(layer, kernel, planned, computing) for layer, kernel in zip(layers, kernels, strict=True))
    units = {
        check.path: ProfiledUnit(planned=str(check.planned), found=check.found, agrees=check.agrees) for check in checks
    }
    return rows, units


def _profiled(
    layer: Layer, kernel: PlanKernel, planned: Mapping[str, Format], computing: set[tuple[str, str]]
) -> ProfiledKernel:
    called = f"{kernel.kind} {kernel.name}".strip()
    named = [node for node in dict.fromkeys(kernel.onnx_nodes) if node in planned]
    computed = [node for node in named if (called, node) in computing]
    return ProfiledKernel(
        role="layer" if computed else role_of(kernel),
        kind=kernel.kind,
        name=kernel.name,
        units=tuple(computed or named),
        inputs=_types(layer.inputs),
        outputs=_types(layer.outputs),
        ms=layer.ms,
    )


def _types(tensors: Sequence[object]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(getattr(tensor, "dtype", "")) for tensor in tensors))
