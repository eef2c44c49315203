import importlib
import subprocess
import sys

import pytest

from calib.choices import OBSERVERS, ROUNDINGS, Registry
from smpq.choices import ESTIMATORS
from tests.conftest import ROOT


@pytest.mark.parametrize("registry", [OBSERVERS, ROUNDINGS, ESTIMATORS], ids=["observers", "roundings", "estimators"])
def test_every_row_names_the_module_that_registers_it(registry):
    for name, module in registry._modules.items():
        found = registry[name]
        assert getattr(found, "__module__", None) == module == importlib.import_module(module).__name__
    assert set(registry) == set(registry._modules), "a built-in entry without a row"


def test_a_registry_is_a_mapping_whose_entries_come_when_they_are_asked_for():
    registry: Registry[int] = Registry({"late": "no.such.module"})
    registry["early"] = 1
    assert list(registry) == ["late", "early"]
    assert len(registry) == 2
    assert "late" in registry
    assert "never" not in registry
    assert registry["early"] == 1
    with pytest.raises(ModuleNotFoundError):
        registry["late"]
    with pytest.raises(KeyError):
        registry["never"]
    del registry["early"]
    assert list(registry) == ["late"]


def test_the_names_load_nothing_heavy():
    code = (
        "import sys, calib.choices as c, smpq.choices as s; "
        "assert all(map(list, (c.OBSERVERS, c.ROUNDINGS, s.ESTIMATORS)));"
        "sys.exit(bool({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
