from __future__ import annotations

import pytest

from calib.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \ntwo"), "one  "),
        (KeyError(), "KeyError"),
        (OSError(" "), "OSError"),
    ],
)
def test_what_an_exception_says_first(error, line):
    assert first_line(error) == line
