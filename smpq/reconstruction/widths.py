"""The weights of every width, reconstructed before a search chooses among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calib.formats.format import Format
from calib.formats.quantizers import QuantizedWeight
from smpq.problem.policy import Policy, Space

_FEWEST_BITS, _ENOUGH_BITS = 2, 8
"""A weight of one bit without a zero point cannot be reconstructed; at eight bits rounding costs next to nothing."""

RoundedWeights = dict[tuple[str, str], QuantizedWeight]
"""Weights by unit path and `Format.weight_key`."""


@dataclass(frozen=True)
class Width:
    """One representation of weights (`Format.weight_key`), and the policy in which all layers that can have it do."""

    key: str
    policy: Policy

    def rounded(self, space: Space, found: Mapping[str, QuantizedWeight]) -> RoundedWeights:
        """Return what a reconstruction of the policy found, of the layers that have the representation."""
        formats = self.policy.by_unit(space.groups)
        return {(path, self.key): weight for path, weight in found.items() if formats[path].weight_key == self.key}


def widths_of(space: Space) -> tuple[Width, ...]:
    """Return the representations on integers below 8 bits whose steps can be learned, of those that the formats of a
    space have, the narrowest first. Of formats with one representation the one with the most activation bits is taken,
    and layers without it are in float.
    """
    formats = {chosen for row in space.formats.values() for chosen in row if _is_reconstructed(chosen)}
    keys = sorted({(chosen.weight_bits, chosen.weight_key) for chosen in formats})
    return tuple(Width(key, _everywhere(space, key)) for _, key in keys)


def _is_reconstructed(chosen: Format) -> bool:
    weight, read = chosen.weight, chosen.activation is None or chosen.activation.is_integer
    integers = weight.is_integer and not weight.one_scale and weight.bits >= _FEWEST_BITS
    return read and (integers or weight.zero_points) and weight.bits < _ENOUGH_BITS


def _everywhere(space: Space, key: str) -> Policy:
    def of(group: str) -> Format:
        own = [chosen for chosen in space.formats[group] if _is_reconstructed(chosen) and chosen.weight_key == key]
        return max(own, key=lambda chosen: chosen.activation_bits, default=space.reference)

    return Policy({group.name: of(group.name) for group in space.groups})
