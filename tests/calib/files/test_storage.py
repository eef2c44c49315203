"""Files of records: values or one message with the file, the place in it and what was expected; written in full or not
at all.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from calib.errors import UserError
from calib.files import storage
from calib.files.storage import (
    Amount,
    Count,
    FileRecord,
    Fraction,
    Record,
    json_text,
    plain,
    read_record,
    record_from_text,
    write_record,
)
from smpq.files import PolicyFile

Key = Annotated[str, msgspec.Meta(pattern="^w[0-9]$")]


class Row(Record, frozen=True, kw_only=True):
    low: Fraction
    high: Fraction

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("the lower end comes first")


class Sample(FileRecord, frozen=True, kw_only=True):
    NAME = "sample.json"
    MADE_BY = "smpq sample"
    VERSION = 3

    count: Count
    scores: dict[str, dict[Key, Amount]]
    rows: tuple[Row, ...] = ()


SCORES: dict[str, dict[str, float]] = {f"layer {index}": {"w4": 0.5, "w8": 1.0} for index in range(5)}
SAMPLE = Sample(count=1, scores=SCORES, rows=(Row(low=0.1, high=0.2),))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / Sample.NAME
    write_record(path, SAMPLE)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def with_score(text: str, key: str = "w8") -> str:
    """Return the sample with another entry in one of its mappings."""
    return json_text(SAMPLE).replace('"w8": 1.0', f'"{key}": {text}', 3).replace(f'"{key}": {text}', '"w8": 1.0', 2)


def refusal(file: Path, content: str | bytes) -> str:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        read_record(file, Sample, "look at it")
    message = str(caught.value)
    assert message.startswith(f"{file} ")
    assert message.endswith(": look at it")
    assert message.isprintable()
    return message.removeprefix(f"{file} ").removesuffix(": look at it")


def test_a_record_comes_back(file: Path) -> None:
    assert read_record(file, Sample) == SAMPLE
    assert json.loads(file.read_text()) == {**plain(SAMPLE), "rows": [{"low": 0.1, "high": 0.2}]}
    assert plain(SAMPLE)["schema"] == 3
    assert record_from_text(file.read_bytes(), Sample, "it", "look") == SAMPLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has schema 2, this version of smpq reads schema 3"),
        ({"schema": 99, "count": "x", "later": 1}, "has schema 99, this version of smpq reads schema 3"),
        ({"schema": "3"}, "is damaged: expected `int`, got `str` - at `$.schema`"),
        ({"schema": None}, "is damaged: expected `int`, got `null` - at `$.schema`"),
        ({"later": 1}, "is damaged: object contains unknown field `later`"),
        ({"later\x1b[2J\u202e": 1}, r"is damaged: object contains unknown field `later\x1b[2J\u202e`"),
        ({"count": True}, "is damaged: expected `int`, got `bool` - at `$.count`"),
        ({"count": 1.5}, "is damaged: expected `int`, got `float` - at `$.count`"),
        ({"count": -1}, "is damaged: expected `int` >= 0 - at `$.count`"),
        ({"count": 2**53 + 1}, f"is damaged: expected `int` <= {2**53} - at `$.count`"),
        ({"scores": []}, "is damaged: expected `object`, got `array` - at `$.scores`"),
        (
            {"rows": [{"low": 0, "high": 1}, {"low": 0}]},
            "is damaged: object missing required field `high` - at `$.rows[1]`",
        ),
        ({"rows": [{"low": 0, "high": 1, "x": 1}]}, "is damaged: object contains unknown field `x` - at `$.rows[0]`"),
        ({"rows": [{"low": 0.5, "high": 0.4}]}, "is damaged: the lower end comes first - at `$.rows[0]`"),
        ({"rows": [{"low": 0, "high": 1.5}]}, "is damaged: expected `float` <= 1.0 - at `$.rows[0].high`"),
    ],
)
def test_what_does_not_fit_is_located(file: Path, changes: dict[str, Any], message: str) -> None:
    assert refusal(file, json.dumps({**plain(SAMPLE), **changes})) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_score('"much"'), 'expected `float`, got `str` - at `$.scores["layer 2"]["w8"]`'),
        (with_score("-1"), 'expected `float` >= 0.0 - at `$.scores["layer 2"]["w8"]`'),
        (with_score("1e999"), 'number out of range - at `$.scores["layer 2"]["w8"]`'),
        (
            with_score("1", "int8"),
            """expected `str` matching regex '^w[0-9]$' - at the key `$.scores["layer 2"]["int8"]`""",
        ),
    ],
)
def test_the_keys_of_mappings_are_in_the_place(file: Path, content: str, message: str) -> None:
    assert refusal(file, content) == f"is damaged: {message}"


@pytest.mark.parametrize("key", ["", "a.b[0]", "x[...]", "x[...]`", "$.count", "`", '"', "\x1b[2J\u202e", "k" * 1000])
def test_a_key_of_any_form_is_named(file: Path, key: str) -> None:
    message = refusal(file, json.dumps({**plain(SAMPLE), "scores": {**SCORES, key: 7, "last": {}}}, ensure_ascii=False))
    named = json.dumps(key if len(key) < 100 else "k" * 60 + "...")
    assert message == f"is damaged: expected `object`, got `int` - at `$.scores[{named}]`"


def test_the_place_is_found_among_many_keys_in_little_time(file: Path) -> None:
    scores: dict[str, Any] = {f"layer {index}": {"w8": 1} for index in range(20_000)}
    start = time.process_time()
    message = refusal(file, json.dumps({**plain(SAMPLE), "scores": {**scores, "layer 777": {"w8": "x"}}}))
    assert 'at `$.scores["layer 777"]["w8"]`' in message
    assert time.process_time() - start < 20


WRONG = '{"schema": 3, "count": 1, "scores": {"a": 1}, "rows": '


@pytest.mark.parametrize(
    "content",
    [
        WRONG.encode() + b'[{"low": 0, "high": 1}], "x": "\xff"}',
        WRONG.encode() + b"9" * 5000 + b"}",
        b'{"schema": 3, "count": 1, "scores": {"a": 1, "a": {}, "b": {}}}',
    ],
    ids=["not UTF-8", "5,000 digits", "a key twice"],
)
def test_where_the_key_cannot_be_told_it_stays_open(file: Path, content: bytes) -> None:
    assert refusal(file, content) == "is damaged: expected `object`, got `int` - at `$.scores[...]`"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 64,
        b"\xff\xfe\x00",
        json_text(SAMPLE).encode()[:-20],
        json_text(SAMPLE).encode() + b"}",
        json_text(SAMPLE).encode() + b"\x00",
        with_score("NaN").encode(),
        with_score("-Infinity").encode(),
        with_score("0x10").encode(),
        json_text(SAMPLE).encode().replace(b"layer 2", b"layer \xff"),
        b'{"schema": 3, "count": ' + b"[" * 200_000,
        b'{"schema": 3, "count": ' + b'{"a":' * 200_000,
    ],
)
def test_what_is_not_json_is_one_message(file: Path, content: bytes) -> None:
    assert refusal(file, content).startswith("is not valid JSON (")


def test_a_text_is_read_alike() -> None:
    for text, message in [
        ("{", "^it is not valid JSON .*: look$"),
        (
            '{"schema": 3, "count": 1, "scores": {"a": 1',
            r"^it is damaged: expected `object`, got `int` - at `\$.scores\[...\]`: look$",
        ),
        (with_score("-1"), r'at `\$.scores\["layer 2"\]\["w8"\]`: look$'),
        ('{"schema": 2, "count": 1, "scores": {}}', "schema 2, this version of smpq reads schema 3: look$"),
    ]:
        with pytest.raises(UserError, match=message):
            record_from_text(text, Sample, "it", "look")


def test_a_file_that_is_not_there_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sample.json is missing: make it with smpq sample$"):
        read_record(tmp_path / Sample.NAME, Sample)
    with pytest.raises(UserError, match=r"is not a file: remove it$"):
        read_record(tmp_path, Sample)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot read .*: Not a directory$"):
        read_record(tmp_path / "file" / Sample.NAME, Sample)


def test_a_file_that_is_too_large_is_not_read(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(storage.LARGEST_JSON_BYTES + 1)
    with pytest.raises(UserError, match=r"has 256 MB, more than any file of its kind: delete it to make it again"):
        read_record(file, Sample)


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text('{"schema": 1, "policy": {"a": "w8a8", "a": "fp32"}}')
    with pytest.raises(UserError, match='the key "a" is given twice'):
        read_record(path, PolicyFile)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "policy.json")
    with pytest.raises(UserError, match=r"policy\.json is not a file"):
        read_record(tmp_path / "policy.json", PolicyFile)
