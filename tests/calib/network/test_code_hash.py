"""Whether functions of the user's are what they were."""

from __future__ import annotations

import functools
import importlib

import pytest
import torch

from calib.network.code_hash import code_hash

CODE = """
import torch
THRESHOLD = 0.5
CALLS = 0
def helper(x):
    return x.abs()
def metric(output, target, scale=1.0):
    global CALLS
    CALLS += 1
    if target in {"a", "b", "c"}:
        return 0
    return (helper(output) > THRESHOLD).float() * scale
LEVELS = [1, 2]
class Scale:
    def __init__(self, by):
        self.by = by
    def __call__(self, x):
        return x * self.by
class Task:
    classes = 3
    shift = 0.25
    def __init__(self, inner):
        self.inner, self.calls, self.margin, self.scale = inner, [], 0.1, Scale(2.0)
    def metric(self, output, target):
        self.calls.append(1)
        return self.inner(output, target) + self.own(output)
    def own(self, output):
        return torch.sigmoid(self.scale(output) - self.margin + self.shift) * LEVELS[0]
found = metric
bound = Task(metric).metric
"""


def made(code: str, name: str = "found"):
    names = {"__name__": "users"}
    exec(compile(code, "users.py", "exec", dont_inherit=True), names)
    return names[name]


@pytest.mark.parametrize(
    "change",
    [
        ("THRESHOLD = 0.5", "THRESHOLD = 0.6"), ("x.abs()", "x.square()"), ("scale=1.0", "scale=2.0"),
        ("return 0", "return 1"), ('"c"}', '"d"}'), (".float()", ".double()"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["found", "bound"])
def test_what_changes_the_result_changes_the_hash(change, name):
    assert code_hash([made(CODE, name)]) != code_hash([made(CODE.replace(*change), name)])


@pytest.mark.parametrize(
    "change",
    [
        ("torch.sigmoid", "torch.tanh"), ("[], 0.1", "[], 0.2"), ("shift = 0.25", "shift = 0.5"), ("[1, 2]", "[3, 2]"),
        ("x * self.by", "x / self.by"),
    ],
)  # fmt: skip
def test_what_methods_use_counts_too(change):
    changed = CODE.replace(*change)
    assert code_hash([made(CODE, "bound")]) != code_hash([made(changed, "bound")])
    assert code_hash([made(CODE)]) == code_hash([made(changed)])


def test_what_changes_nothing_keeps_the_hash():
    changed = CODE.replace("CALLS = 0", "CALLS = 7").replace(
        "    global", '    """Says how good it is."""\n    # so\n    global'
    )
    for name in ("found", "bound"):
        assert code_hash([made(CODE, name)]) == code_hash([made(changed, name)])
    task = made(CODE, "bound").__self__
    before = code_hash([task.metric])
    task.calls.append(1)
    assert code_hash([task.metric]) == before


def test_closures_partials_and_lambdas():
    def above(limit):
        return lambda output, _: (output > limit).float()

    assert code_hash([above(1)]) == code_hash([above(1)])
    assert code_hash([above(1)]) != code_hash([above(2)])
    assert code_hash([above(torch.zeros(2))]) != code_hash([above(torch.ones(2))])
    assert code_hash([functools.partial(above(1), limit=1)]) != code_hash([functools.partial(above(1), limit=2)])
    assert code_hash([None]) != code_hash([]) != code_hash([max]) != code_hash([min])
    assert code_hash([torch.nn.MSELoss()]) != code_hash([torch.nn.L1Loss()])


def test_functions_of_the_user_s_other_modules_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number, limit in enumerate((1, 1, 2)):
        (tmp_path / f"users_{number}.py").write_text(f"LIMIT = {limit}\ndef above(x):\n    return x > LIMIT\n")
        module = importlib.import_module(f"users_{number}")
        names = {"__name__": "task", "users": module, "above": module.above}
        exec("def metric(o, t):\n    return above(o)\ndef other(o, t):\n    return users.above(o)", names)
        found.append((code_hash([names["metric"]]), code_hash([names["other"]])))
    assert found[0] == found[1]
    assert not set(found[0]) & set(found[2])


@pytest.mark.slow
def test_another_process_has_the_same(warm):
    said, _ = warm.run("tests.expression", __name__, "code_hash([made(CODE, 'bound')])").communicate()
    assert said.strip() == str(code_hash([made(CODE, "bound")]))
