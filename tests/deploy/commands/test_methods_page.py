"""The page of the methods is what the registry and the records say."""

from __future__ import annotations

import json

from deploy.commands.methods_page import page
from smpq.methods import METHODS
from tests.conftest import ROOT


def test_the_documentation_has_it():
    command = "python -m deploy.commands.methods_page docs/methods.md benchmarks/results"
    assert (ROOT / "docs" / "methods.md").read_text() == page(ROOT / "benchmarks" / "results"), command


def test_every_method_has_a_section_with_what_it_declares(tmp_path):
    text = page(tmp_path)
    for name, method in METHODS.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert method.cost in section
        assert method.paper.split(" ")[0] in section
        assert all(need.value in section for need in method.needs)
    assert "| measured |" not in text


def test_records_become_rows_the_mean_over_seeds(tmp_path):
    row = {"method": "hawq", "rounding": "gptq", "cpu_seconds": 10}
    rows = [
        {**row, "budget": 3.0, "seed": 0, "top1": 80.0},
        {**row, "budget": 3.0, "seed": 1, "top1": 81.0},
        {**row, "budget": 4.0, "seed": 0, "top1": 88.0, "cpu_seconds": 40},
        {"method": "ohq", "network": "digits", "data_free": True, "budget": "kl=1", "top1": 90},
        {"method": "one at a time", "top1": 1.0},
        {"method": "random"},
    ]
    (tmp_path / "table.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "list.json").write_text(json.dumps([1, 2]))
    text = page(tmp_path)
    link = "[table.json](../benchmarks/results/table.json)"
    assert f"| gptq (2 seeds) | 3.0: 80.50, 4.0: 88.00 | 20 | {link} |" in text
    assert f"| digits, data-free | kl=1: 90.00 |  | {link} |" in text
    assert text.count(link) == 2


def test_signs_of_formulas_are_not_read_as_markdown(tmp_path):
    assert r"\|\|Q\_f(W\_l) - W\_l\|\|^2" in page(tmp_path)
