"""The notebook among the examples: its cells run in order."""

import json

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "optimize.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    result = names["result"]
    assert result.met
    assert result.accuracy["engine"].mean > 0.8
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
