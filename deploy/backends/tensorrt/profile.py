"""What the kernels of a measured plan are for, beside what was planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calib.formats.format import Format
from deploy.backends.tensorrt.check import check_units
from deploy.backends.tensorrt.roles import role_of
from deploy.devices.messages import Layer, Tensor
from deploy.files.profile import ProfiledKernel, ProfiledUnit


def profiled(
    layers: Sequence[Layer], planned: Mapping[str, Format]
) -> tuple[tuple[ProfiledKernel, ...], dict[str, ProfiledUnit]]:
    """Return the kernels in the order in which they run, and the layers of the model by the name of the ONNX node."""
    checks = check_units(layers, planned)
    computing = {(check.kernel, check.path) for check in checks}
    units = {
        check.path: ProfiledUnit(planned=str(check.planned), found=check.found, agrees=check.agrees) for check in checks
    }
    return tuple(_profiled(layer, planned, computing) for layer in layers), units


def _profiled(layer: Layer, planned: Mapping[str, Format], computing: set[tuple[str, str]]) -> ProfiledKernel:
    called = f"{layer.kind} {layer.name}".strip()
    named = [node for node in dict.fromkeys(layer.onnx_nodes) if node in planned]
    computed = [node for node in named if (called, node) in computing]
    return ProfiledKernel(
        role="layer" if computed else role_of(layer),
        kind=layer.kind,
        name=layer.name,
        units=tuple(computed or named),
        inputs=_types(layer.inputs),
        outputs=_types(layer.outputs),
        ms=layer.ms,
    )


def _types(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tensor.dtype for tensor in tensors))
