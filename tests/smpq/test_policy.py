import json

import pytest

from calib.errors import UserError
from calib.formats import FP32, Format
from smpq.policy import Group, Policy, Space
from tests.smpq.problems import W4A16, W8A8, space_of, unit


@pytest.fixture
def space() -> Space:
    groups = (Group("a", (unit("a"), unit("b"))), Group("c", (unit("c"),)))
    return Space(groups, {"a": (W8A8, FP32), "c": (W8A8, W4A16, FP32)}, FP32)


def test_json_names_every_unit_and_comes_back(space):
    policy = Policy({"a": W8A8, "c": W4A16})
    record = json.loads(json.dumps(policy.to_json(space.groups)))
    assert record == {"schema": 1, "policy": {"a": "w8a8", "b": "w8a8", "c": "w4a16"}}
    assert Policy.from_json(record, space) == policy


def test_one_unit_of_a_group_is_enough(space):
    record = {"schema": 1, "policy": {"b": "w8a8", "c": " W4 "}}
    assert Policy.from_json(record, space) == Policy({"a": W8A8, "c": W4A16})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "a policy file holds"),
        ([], "a policy file holds"),
        ({"schema": 1}, "a policy file holds"),
        ({"schema": 1, "policy": ["w8a8"]}, "a policy file holds"),
        ({"schema": 2, "policy": {}}, "schema 2"),
        ({"policy": {}}, "schema None"),
        ({"schema": 1, "policy": {"a": "w8a8", "x": "fp32"}}, "no quantisable layer 'x'"),
        ({"schema": 1, "policy": {"a": "int8", "c": "fp32"}}, "unknown format 'int8'"),
        ({"schema": 1, "policy": {"a": 8, "c": "fp32"}}, "must be a text"),
        ({"schema": 1, "policy": {"a": "w8a8", "b": "fp32", "c": "fp32"}}, "a, b share a format"),
        ({"schema": 1, "policy": {"a": "w8a8"}}, "does not name c"),
    ],
)
def test_a_wrong_file_is_a_user_error(space, record, message):
    with pytest.raises(UserError, match=message):
        Policy.from_json(record, space)


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
    tied = type(shared)(**{**shared.to_json(), "aliases": ("twin",)})
    space = Space((Group("a", (tied,)),), {"a": (Format.from_text("w8a8"), FP32)}, FP32)
    assert Policy.from_json({"schema": 1, "policy": {"twin": "w8a8"}}, space) == Policy({"a": W8A8})
