import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from calib.errors import UserError
from calib.task import Task
from calib.tasks import load_task, task_names

DIGITS = ("digits", "digits-vit")

GOOD = """
import torch
from torch import nn


class Mine:
    name = "mine"
    metric_name = "accuracy"

    def __init__(self, data=None, weights=None):
        self.paths = (data, weights)

    def model(self):
        return nn.Linear(2, 2).eval()

    def calibration(self):
        return [(torch.ones(2, 2), torch.zeros(2))]

    evaluation = calibration

    def metric(self, output, target):
        return (output.argmax(1) == target).float()

    def loss(self, output, target):
        return output.sum(1)


def factory(data, weights):
    return Mine(data, weights)


class Half:
    name = "half"

    def model(self):
        return None


class Whole(Mine):
    metric = None

    def records(self, output, target):
        return list(zip(output, target))

    def metric_of(self, records):
        return 1.0


class Unfinished(Whole):
    metric_of = None


class Callable(Mine):
    def __call__(self, a, b):
        raise RuntimeError("a task is not called")


class Box:
    inner = Mine()


def raises(data, weights):
    raise ValueError("no such luck")


def leaves(data, weights):
    raise SystemExit(3)


def told(data, weights):
    from calib.errors import UserError
    raise UserError("put the data there")


def nothing(data, weights):
    return None


ready = Mine()
callable_task = Callable()
half = Half()
number = 7
takes_nothing = lambda: Mine()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with modules of a user's own, none of which stays imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_task.py").write_text(GOOD)
    (tmp_path / "own_broken.py").write_text("x = 1\nraise RuntimeError('no GPU in sight')\n")
    (tmp_path / "own_syntax.py").write_text("def (:\n")
    (tmp_path / "own_leaves.py").write_text("import sys\nsys.exit('bye')\n")
    (tmp_path / "own_needs.py").write_text("import a_library_nobody_has\n")
    before = set(sys.modules)
    path = list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    assert sys.path == path


def test_every_built_in_name_is_known_to_its_module(cifar10_like, resnet20_like):
    assert task_names() == ("digits", "digits-vit", "cifar10-resnet20", "cifar10-vit")
    for name in DIGITS:
        assert load_task(name).name == name
    assert load_task("cifar10-resnet20", cifar10_like, resnet20_like).name == "cifar10-resnet20"


@pytest.mark.parametrize("name", ["factory", "ready", "Mine", "Whole", "callable_task", "Box.inner"])
def test_a_task_of_ones_own(here, name):
    task = load_task(f"own_task:{name}", Path("d"), Path("w"))
    assert isinstance(task, Task)
    assert task.name == "mine"
    if name in {"factory", "Mine"}:
        assert task.paths == (Path("d"), Path("w"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "digits, digits-vit, cifar10-resnet20, cifar10-vit"),
        ("", "unknown task"),
        ("own_missing:task", "no module own_missing"),
        ("own.deep.missing:task", "no module own.deep.missing"),
        ("own_broken:task", "RuntimeError: no GPU in sight"),
        ("own_syntax:task", "SyntaxError"),
        ("own_leaves:task", "SystemExit: bye"),
        ("own_needs:task", "importing own_needs failed.*a_library_nobody_has"),
        ("own_task:nothing_there", "no 'nothing_there'"),
        ("own_task:", "package.module:object"),
        (":task", "package.module:object"),
        ("dir/own_task.py:task", "package.module:object"),
        ("own_task:ready:more", "package.module:object"),
        ("own_task:half", r"without metric_name, calibration\(\), evaluation\(\), metric\(\), loss\(\)"),
        ("own_task:Unfinished", r"without metric_of\(\): .*\(see calib.task.Task; records and metric_of may stand for"),
        ("own_task:number", "type int without name"),
        ("own_task:nothing", "NoneType"),
        ("own_task:raises", "ValueError: no such luck"),
        ("own_task:leaves", "SystemExit: 3"),
        ("own_task:told", "^put the data there$"),
        ("own_task:takes_nothing", "TypeError"),
    ],
)
def test_what_can_go_wrong_is_one_message(here, name, message):
    with pytest.raises(UserError, match=message):
        load_task(name)


CALLS = """
import functools
import os
import runpy
import shutil
from os import system
from runpy import run_path
from own_task import Mine, factory, ready

bound = functools.partial(shutil.rmtree)
lazy = functools.lru_cache(run_path)


class Box:
    call = run_path
    inside = shutil


def wrapped(data, weights):
    return factory(data, weights)
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imports:run_path", "defined in runpy and not in imports"),
        ("imports:system", "defined in posix and not in imports"),
        ("imports:Box.call", "defined in runpy"),
        ("imports:bound", "defined in functools"),
        ("imports:lazy", "defined in runpy"),
        ("imports:factory", "defined in own_task and not in imports: name that module"),
        ("imports:Mine", "defined in own_task"),
        ("imports:shutil.rmtree", "goes through the module shutil: write shutil:object"),
        ("imports:Box.inside.rmtree", "goes through the module shutil"),
        ("imports:os.path.join", "goes through the module os"),
        ("imports:wrapped.__class__", "defined in builtins"),
    ],
)
def test_only_what_the_module_defines_is_called(here, name, message):
    victim = here / "kept"
    victim.mkdir()
    (here / "imports.py").write_text(CALLS)
    with pytest.raises(UserError, match=message):
        load_task(name, victim)
    assert victim.is_dir()
    assert load_task("imports:wrapped").name == load_task("imports:ready").name == "mine"


def test_a_package_may_hand_on_what_is_inside_it(here):
    (here / "own_package").mkdir()
    (here / "own_package" / "inside.py").write_text(GOOD)
    (here / "own_package" / "__init__.py").write_text(
        "from own_package.inside import Mine, factory\nfrom runpy import run_path\n"
    )
    assert load_task("own_package:factory").name == load_task("own_package:Mine").name == "mine"
    with pytest.raises(UserError, match="defined in runpy"):
        load_task("own_package:run_path")


def test_a_broken_module_can_be_corrected(here):
    with pytest.raises(UserError):
        load_task("own_broken:ready")
    (here / "own_broken.py").write_text(GOOD + "# corrected, and longer than before\n")
    assert load_task("own_broken:ready").name == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_digits_trains_well_and_splits_cleanly(name):
    task = load_task(name)
    model = task.model()
    calibration, evaluation = list(task.calibration()), list(task.evaluation())
    assert sum(len(batch.target) for batch in calibration) == 512
    assert sum(len(batch.target) for batch in evaluation) == 597
    seen = {image.numpy().tobytes() for batch in calibration for image in batch.inputs[0]}
    held_out = [image.numpy().tobytes() for batch in evaluation for image in batch.inputs[0]]
    assert not seen.intersection(held_out)
    with torch.no_grad():
        correct = torch.cat([task.metric(model(*batch.inputs), batch.target) for batch in evaluation])
        losses = torch.cat([task.loss(model(*batch.inputs), batch.target) for batch in evaluation])
    assert correct.shape == losses.shape == (597,)
    assert correct.mean() > 0.97
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) >= 8
    assert not model.training


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_digits_gives_the_same_twice_and_leaves_the_random_numbers_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = load_task(name).model(), load_task(name).model()
    assert torch.equal(torch.rand(3), expected)
    for (key, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", DIGITS)
def test_digits_takes_no_paths(name, tmp_path):
    with pytest.raises(UserError, match=f"{name} takes no --data"):
        load_task(name, tmp_path, None)
    with pytest.raises(UserError, match=f"{name} takes no --weights"):
        load_task(name, None, tmp_path)


def test_the_digits_transformer_has_what_transformers_have():
    modules = list(load_task("digits-vit").network().modules())
    assert sum(isinstance(module, nn.LayerNorm) for module in modules) == 7
    assert sum(isinstance(module, nn.Linear) for module in modules) == 13
