from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from calib.formats.format import FP32, Format
from calib.network.clips import clipped
from smpq.problem.costs import CostModel, JoinCost, Transition
from smpq.problem.groups import find_groups
from smpq.problem.joins import find_edges, find_joins
from smpq.problem.policy import Group, Join, Policy, Space, integer_names, integer_regions
from smpq.quantized.plan import QdqRules
from smpq.solve.allocate import Ceiling, Problem, allocate
from tests.deploy import networks
from tests.smpq.problems import residual as residual_net
from tests.smpq.problems import unit

OUTPUTS, SKIPS = QdqRules("affine", outputs=True), QdqRules("symmetric", skips=True)
W8A8 = Format.from_text("w8a8")


def found(rules):
    exported = networks.residual()
    groups = find_groups(exported.traced, exported.units)
    return exported, groups, find_joins(exported.traced, groups, rules), find_edges(exported.traced, groups, rules)


def test_rule_1_a_sum_of_convolutions_that_a_layer_reads_is_a_join():
    exported, groups, joins, _ = found(OUTPUTS)
    name = {unit.path: group.name for group in groups for unit in group.units}
    assert joins
    first = joins[0]
    assert set(first.operands) == {name["b"], name["stem"]}
    assert first.readers == (name["depthwise"],)
    assert first.name in exported.traced.nodes


def test_a_sum_that_averages_alone_read_is_a_join_and_its_operands_its_readers():
    network = residual_net()
    groups = find_groups(network.traced, network.units)
    name = {unit.path: group.name for group in groups for unit in group.units}
    first, second = find_joins(network.traced, groups, OUTPUTS)
    assert second.operands == second.readers == (name["d"], first.name)


def test_rule_2_the_skip_of_a_sum_is_a_join_where_a_layer_reads_or_makes_it():
    _, groups, joins, _ = found(SKIPS)
    name = {unit.path: group.name for group in groups for unit in group.units}
    identity, repeated, moved = joins
    assert identity == Join(identity.name, (name["b"],), (name["a"], name["stem"]))
    assert repeated == Join(repeated.name, (name["twice"],), (name["twice"], name["depthwise"]))
    assert moved == Join(moved.name, (name["grouped"],), (name["grouped"], name["twice"]))


def test_each_join_of_rule_2_is_what_the_plan_decides():
    """A join works on integers in the policy exactly where the plan quantises an operand of its add."""
    exported, groups, joins, _ = found(SKIPS)
    generator = np.random.default_rng(0)
    _, quantizer = exported.plan(exported.formats("fp16"), "tensorrt")
    for _ in range(40):
        formats = {group.name: W8A8 if generator.random() < 0.6 else FP32 for group in groups}
        kept = frozenset(join.name for join in joins if generator.random() < 0.3)
        plan = quantizer.plan(Policy(formats).by_unit(groups), kept)
        quantized = {consumer for entry in plan.tensors for consumer in entry.consumers or ()}
        integers = integer_names(Policy(formats, kept), joins)
        assert {join.name for join in joins} & quantized == {join.name for join in joins} & integers


def test_the_skip_of_a_join_is_an_edge_so_that_the_latency_model_has_a_price_for_it():
    _, _, joins, edges = found(SKIPS)
    sizes = {(edge.first, edge.second): edge.elements for edge in edges}
    assert [sizes[join.readers[0], join.name] for join in joins] == [8 * 8 * 8, 8 * 8 * 8, 16 * 4 * 4]


def test_rule_3_without_such_rules_there_is_no_choice():
    assert found(QdqRules("affine"))[2] == ()


def test_edges_start_at_convolutions_joins_and_linear_layers_of_one_row():
    _, groups, joins, edges = found(OUTPUTS)
    convolutions = {group.name for group in groups for unit in group.units if "conv" in unit.operator}
    name = {unit.path: group.name for group in groups for unit in group.units}
    assert {edge.first for edge in edges} <= convolutions | {join.name for join in joins} | {name["head"]}
    sizes = {(edge.first, edge.second): edge.elements for edge in edges}
    assert (name["head"], name["last"]) in sizes
    assert sizes[name["stem"], name["a"]] == 8 * 8 * 8
    assert (joins[0].name, name["depthwise"]) in sizes
    assert all(first != second for first, second in sizes)


def test_a_join_in_float_is_quantised_for_its_only_reader_instead_which_changes_no_value():
    exported, _, joins, _ = found(OUTPUTS)
    formats = exported.formats("w8a8")
    plan, quantizer = exported.plan(formats, "ort-cpu")
    kept = quantizer.plan(formats, frozenset({joins[0].name}))
    tensor = clipped(exported.traced.nodes[joins[0].name]).name
    where = [{entry.tensor: entry.consumers for entry in each.tensors}[tensor] for each in (plan, kept)]
    assert where[0] is None
    assert where[1] == exported.units[3].calls
    exact, other = (exported.traced.run((exported.batch,), quantizer.edits(each)) for each in (plan, kept))
    assert exact.equal(other)


def test_integer_names_follow_operands_readers_and_the_policy():
    joins = (Join("first", ("a", "b"), ("c",)), Join("second", ("first", "c"), ("d",)))
    every = dict.fromkeys("abcd", W8A8)
    assert integer_names(Policy(every), joins) == {*"abcd", "first", "second"}
    assert integer_names(Policy({**every, "b": FP32}), joins) == {*"acd"}
    assert integer_names(Policy({**every, "d": FP32}), joins) == {*"abc", "first"}
    assert integer_names(Policy(every, frozenset({"first"})), joins) == {*"abcd"}


def joined_problem(seed):
    """A chain a, b, c, d with two sums; random prices of everything, and values that make float formats more
    valuable.
    """
    random = np.random.default_rng(seed)
    names = tuple("abcd")
    groups = tuple(Group(name, (unit(name, 64),)) for name in names)
    joins = (Join("first", ("a", "b"), ("c",)), Join("second", ("first", "c"), ("d",)))
    space = Space(groups, dict.fromkeys(names, (W8A8, FP32)), FP32, joins)
    parts = {name: {W8A8: float(random.uniform(-0.3, 0.05)), FP32: 0.0} for name in names}
    ends = [
        ("a", "b"),
        ("a", "first"),
        ("b", "first"),
        ("first", "c"),
        ("c", "second"),
        ("first", "second"),
        ("second", "d"),
    ]
    transitions = tuple(Transition(first, second, float(random.uniform(0, 0.1))) for first, second in ends)
    costs = tuple(JoinCost(join, *random.uniform(-0.1, 0.1, 2).tolist()) for join in joins)
    model = CostModel("latency", 1.0, parts, 1.0, transitions, costs)
    values = {name: {W8A8: -float(random.uniform(0, 1)), FP32: 0.0} for name in names}
    return Problem(space, values, [Ceiling(model, float(random.uniform(0.5, 1.0)))])


def test_joins_of_which_no_price_is_known_work_on_integers():
    """The solver may put them anywhere, and in float TensorRT never gets to show what they save."""
    groups = tuple(Group(name, (unit(name, 64),)) for name in "abc")
    joins = (Join("first", ("b",), ("a",)), Join("second", ("c",), ("b",)))
    space = Space(groups, dict.fromkeys("abc", (W8A8, FP32)), FP32, joins)
    parts = {name: {W8A8: -0.2, FP32: 0.0} for name in "abc"}
    model = CostModel("latency", 1.0, parts, 1.0, (), tuple(map(JoinCost, joins)))
    values = {name: {W8A8: -0.1, FP32: 0.0} for name in "abc"}
    assert allocate(Problem(space, values, [Ceiling(model, 0.5)])) == Policy(dict.fromkeys("abc", W8A8))


def every_policy(space):
    names = [group.name for group in space.groups]
    for formats in product(*(space.formats[name] for name in names)):
        for count in range(len(space.joins) + 1):
            for kept in combinations([join.name for join in space.joins], count):
                yield Policy(dict(zip(names, formats, strict=True)), frozenset(kept))


@pytest.mark.parametrize("seed", range(30))
def test_formats_and_joins_are_chosen_together_as_well_as_by_brute_force(seed):
    problem = joined_problem(seed)
    (ceiling,) = problem.ceilings

    def value(policy):
        return sum(problem.values[name][chosen] for name, chosen in policy.formats.items())

    within = [policy for policy in every_policy(problem.space) if ceiling.model.total(policy) <= ceiling.limit]
    found = allocate(problem)
    assert (found is None) == (not within)
    if found is not None:
        assert value(found) == pytest.approx(max(map(value, within)))
        assert ceiling.model.total(found) <= ceiling.limit + 1e-6
        same = [policy for policy in within if policy.formats == found.formats]
        assert ceiling.model.total(found) == pytest.approx(min(map(ceiling.model.total, same))), (
            "joins where they are fastest"
        )
        left = allocate(replace(problem, excluded=[found]))
        assert left is None or left.key() != found.key()


def test_a_join_behind_one_kept_in_float_stands_among_integers_but_cannot_work_on_them():
    joins = (Join("first", ("a", "b"), ("c",)), Join("second", ("first", "c"), ("d",)))
    every = dict.fromkeys("abcd", W8A8)
    integers, among, kept = integer_regions(Policy(every, frozenset({"first", "second"})), joins)
    assert integers == {*"abcd"}
    assert among == {*"abcd", "first", "second"}
    assert kept == {"first"}
