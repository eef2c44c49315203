"""Numbers and texts as the report writes them."""

from __future__ import annotations

from deploy.report.wording import aligned, amount, change, fixed, magnitude, measure, number, size
from smpq.files import Interval


def test_numbers_are_written_to_what_they_carry() -> None:
    assert [number(value) for value in (0.64214, 1234.56, None, -0.5)] == ["0.642", "1235", "–", "−0.5"]
    assert [size(value) for value in (12, 301_000, 1_093_000)] == ["12 B", "301 kB", "1.09 MB"]
    assert [magnitude(value) for value in (3.1e9, 950, 2.5e13)] == ["3.1 G", "950", "25 T"]
    assert [amount(0.65, "x"), amount(1.5, "ms"), amount(2e9, "bops"), amount(9, "")] == [
        "0.65x",
        "1.5 ms",
        "2 G bops",
        "9",
    ]
    assert measure(0.885, Interval(0.88, 0.89), "top-1") == "88.50 % (88.00 to 89.00)"
    assert change(0.001, "top-1", unit=True) == "+0.10 points"
    assert [fixed(value, aligned([-0.01, -0.0004])) for value in (-0.01, -0.0004, None)] == ["−0.0100", "−0.0004", "–"]
    assert aligned([None, 0.0]) == ".3f"
