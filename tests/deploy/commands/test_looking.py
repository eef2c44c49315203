"""`smpq targets`: names, and what is real where."""

import json

import pytest

from tests.commands import done


def test_targets_lists_the_names():
    names = ["ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx", "simulate"]
    names += ["jetson-orin", "jetson-orin-7.2", "jetson-thor", "jetson-thor-7.0", "jetson-thor-7.2"]
    assert list(json.loads(done("targets", "--json").out)) == names
    text = done("targets").out
    assert not [name for name in [*names, "sm87"] if name not in text]


def test_targets_shows_what_is_real_where_and_how_we_know():
    assert list(json.loads(done("targets", "ort-cpu", "--json").out)) == ["ort-cpu"]
    text = done("targets", "ort-cpu").out
    assert "ort-cpu (float baseline fp32)" in text
    for word in ("native", "size only", "refused", "built"):
        assert word in text
    assert "tensorrt-rtx" not in text
    orin = json.loads(done("targets", "jetson-orin", "--json").out)["jetson-orin"]
    assert (orin["version"], orin["compute_capabilities"]) == ("10.3", ["sm87"])
    assert {"docs", "inferred"} == {rule["basis"] for rule in orin["rules"]}
    same = json.loads(done("targets", "tensorrt-10.3", "--sm", "sm87", "--json").out)["tensorrt-10.3"]
    assert same["rules"] == orin["rules"]


def test_a_pipe_has_room_for_a_column_of_each_format(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = done("targets", "tensorrt-rtx", "--sm", "sm75").out
    (linear,) = [line.split("│") for line in text.splitlines() if line.startswith("│ linear ")][:1]
    (head,) = [line.split("┃") for line in text.splitlines() if "w8a16b128" in line][:1]
    told = {name.strip(): status.strip() for name, status in zip(head, linear, strict=True)}
    assert (told["w8a8"], told["w7a8"], told["w8a16b128"]) == ("native", "refused", "size only")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_has_a_row_for_each_format_with_whole_words(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = done("targets", "tensorrt-rtx", "--sm", "sm75").out.partition("rules of")[0]
    assert max(map(len, text.splitlines())) <= width
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert next(row for row in rows if row[0] == "w8a8")[1] == "refused"
    assert ["fp16", "native", "every operator"] in rows
    words = {word for row in rows for word in row[2].replace(",", "").split()}
    assert {"depthwise_conv1d", "tied_embedding", "linear_nd"} <= words
