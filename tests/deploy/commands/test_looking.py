"""`smpq targets`: names, and what is real where."""

import json

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
