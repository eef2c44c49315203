import json
from dataclasses import replace

import pytest

from calib.errors import UserError
from calib.files.storage import plain, read_record
from calib.formats.format import FP32, Format
from smpq.files import PolicyFile
from smpq.problem.policy import Group, Policy, Space
from tests.smpq.problems import W4A16, W8A8, space_of, unit


@pytest.fixture
def space() -> Space:
    groups = (Group("a", (unit("a"), unit("b"))), Group("c", (unit("c"),)))
    return Space(groups, {"a": (W8A8, FP32), "c": (W8A8, W4A16, FP32)}, FP32)


def read(directory, record, space):
    """Read a policy as it stands in a file."""
    file = directory / PolicyFile.NAME
    file.write_text(json.dumps(record))
    return Policy.from_file(read_record(file, PolicyFile), space)


def test_the_file_names_every_unit_and_comes_back(space, tmp_path):
    policy = Policy({"a": W8A8, "c": W4A16})
    record = plain(policy.to_file(space.groups))
    assert record == {"schema": 1, "policy": {"a": "w8a8", "b": "w8a8", "c": "w4a16"}, "float_joins": []}
    assert read(tmp_path, record, space) == policy
    assert Policy.from_file(policy.to_file(space.groups), space) == policy


def test_one_unit_of_a_group_is_enough(space, tmp_path):
    record = {"schema": 1, "policy": {"b": "w8a8", "c": " W4 "}}
    assert read(tmp_path, record, space) == Policy({"a": W8A8, "c": W4A16})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "policy.json is damaged: expected `object`"),
        ([], "policy.json is damaged: expected `object`"),
        ({"schema": 1}, "policy.json is damaged: object missing required field `policy`"),
        ({"schema": 1, "policy": ["w8a8"]}, r"expected `object`, got `array` - at `\$.policy`"),
        ({"schema": 2, "policy": {}}, "policy.json has schema 2"),
        ({"policy": {}}, "object missing required field `schema`"),
        ({"schema": 1, "policy": {"a": "w8a8", "x": "fp32"}}, "no quantisable layer 'x'"),
        ({"schema": 1, "policy": {"a": "int8", "c": "fp32"}}, "unknown format 'int8'"),
        ({"schema": 1, "policy": {"a": 8, "c": "fp32"}}, r'expected `str`, got `int` - at `\$.policy\["a"\]`'),
        ({"schema": 1, "policy": {"a": "w8a8", "b": "fp32", "c": "fp32"}}, "a, b share a format"),
        ({"schema": 1, "policy": {"a": "w8a8"}}, "does not name c"),
        ({"schema": 1, "policy": {"a": "w8a8", "c": "fp32"}, "float_joins": ["add"]}, "here none; 'add' is none"),
        (
            {"schema": 1, "policy": {"a": "w8a8", "c": "fp32"}, "float_joins": "add"},
            r"expected `array`, got `str` - at `\$.float_joins`",
        ),
    ],
)
def test_a_wrong_file_is_a_user_error(space, tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, record, space)


def test_keys_do_not_depend_on_the_order():
    assert Policy({"a": W8A8, "c": FP32}).key() == Policy({"c": FP32, "a": W8A8}).key() == "a=w8a8,c=fp32"
    assert Policy({"a": W8A8, "c": FP32}).key() != Policy({"a": FP32, "c": W8A8}).key()


def test_changing_a_format_leaves_the_policy_as_it_was(space):
    start = space.uniform(FP32)
    assert start.with_format("a", W8A8).formats == {"a": W8A8, "c": FP32}
    assert start.formats == {"a": FP32, "c": FP32}


def test_uniform_falls_back_where_the_format_is_not_offered(space):
    assert space.uniform(W4A16).formats == {"a": FP32, "c": W4A16}


def test_sizes_and_units(space):
    assert space.size() == 6
    assert space_of(5).size() == 243
    assert [entry.path for entry in space.units] == ["a", "b", "c"]
    assert space.groups[0].parameters == 128
    assert space.group_of("b") is space.groups[0]
    assert Policy({"a": W8A8, "c": FP32}).by_unit(space.groups) == {"a": W8A8, "b": W8A8, "c": FP32}


def test_a_tied_layer_is_found_by_either_name():
    shared = unit("a")
    tied = replace(shared, aliases=("twin",))
    space = Space((Group("a", (tied,)),), {"a": (Format.from_text("w8a8"), FP32)}, FP32)
    assert Policy.from_file(PolicyFile(policy={"twin": "w8a8"}), space) == Policy({"a": W8A8})
