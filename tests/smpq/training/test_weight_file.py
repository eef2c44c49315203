"""What a file says about a weight, and what it may not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from calib.errors import UserError
from calib.formats.format import Format
from calib.formats.quantizers import QuantizedWeight
from calib.rounding import ROUNDINGS, Moments
from smpq.training.weight_file import WeightRow, check_weight, names_of, row_of, tensors_of, weight_from

PATH, REPAIR = Path("file.safetensors"), "delete it"


def weight(text: str) -> QuantizedWeight:
    floats, chosen = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), Format.from_text(text)
    grid = chosen.weight.with_widths(lambda: (1, 4))
    return ROUNDINGS["nearest"](floats, Moments(torch.eye(8)[None]), grid, chosen.weight_block, torch.zeros(6))


@pytest.mark.parametrize("text", ["w3a8", "w3b4", "wz2b4", "wz1b4", "wm2.5b4"])
def test_what_is_read_is_what_was_written(text):
    given = weight(text)
    row = msgspec.json.decode(msgspec.json.encode(row_of(given)), type=WeightRow)
    tensors = tensors_of("a", given)
    assert set(names_of("a", row)) == set(tensors)
    found = weight_from("a", row, tensors)
    check_weight(found, PATH, "a", REPAIR)
    assert (found.type, found.block, found.bits) == (given.type, given.block, given.bits)
    assert torch.equal(found.dequantize(), given.dequantize())


def test_a_row_of_plain_integers_says_what_it_always_said():
    assert msgspec.json.encode(row_of(weight("w3b4"))) == b'{"bits":3,"block":4}'


@pytest.mark.parametrize(
    "row",
    [
        '{"bits": 2, "block": 4, "type": "z9"}',
        '{"bits": 8, "block": null, "type": "z8"}',
        '{"bits": 8, "block": 4, "type": "8"}',
        '{"bits": 3, "block": 4, "type": "z2"}',
        '{"bits": 3, "block": 4, "type": "m2.5", "widths": [1, 4]}',
        '{"bits": 4, "block": 4, "widths": [1, 4]}',
    ],
)
def test_a_type_that_does_not_go_with_the_rest_is_refused(row):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(row, type=WeightRow)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: replace(given, values=given.values.char()), "is no uint8"),
        (lambda given: replace(given, values=given.values.int().fill_(3).byte()), "has integers outside of"),
        (lambda given: replace(given, zero_point=given.zero_point + 0.5), "not among its values"),
        (lambda given: replace(given, zero_point=given.zero_point + 16), "not among its values"),
        (lambda given: replace(given, zero_point=given.zero_point[:, :1]), "not among its values"),
        (lambda given: replace(given, scale=-given.scale), "not all above zero"),
        (lambda given: replace(given, type=given.type.with_widths(lambda: (1, 4, 4))), "3 widths for its blocks"),
    ],
)
def test_what_no_training_makes_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        check_weight(change(weight("wm2.5b4")), PATH, "a", REPAIR)
