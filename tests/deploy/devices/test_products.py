"""The plan that was measured, on its way from the device into the run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from calib.errors import UserError
from deploy.devices.local import LocalDevice
from deploy.devices.places import machine_directory, note_used
from deploy.devices.products import find_product, take_product
from deploy.devices.ssh import SshDevice
from deploy.runner import bench
from deploy.runner.ort import open_ort_engine
from deploy.runner.state import machine
from tests.deploy.devices.servers import serving
from tests.deploy.experiments import experiment
from tests.deploy.measured_plans import keep_measured_plan, result_of, write_product_of

NAME = "0123456789abcdef"
PLAN = b"a plan of some length"
RESULT = result_of(NAME, hashlib.sha256(PLAN).hexdigest())


def change(product: Path, **values) -> None:
    file = product / "engine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_product_is_taken_whole_or_not_at_all(tmp_path):
    source, target = tmp_path / "source", tmp_path / "run" / "engine.tensorrt"
    write_product_of(source, NAME, content=PLAN)
    assert take_product(source, result_of(NAME, "0" * 64), target) is None
    assert take_product(source, result_of("f" * 16, RESULT.plan_sha256), target) is None
    assert not target.exists()
    product = take_product(source, RESULT, target)
    assert product is not None
    assert product == find_product(target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == {
        file.name: file.read_bytes() for file in source.iterdir()
    }
    assert take_product(source, RESULT, target) == product
    assert [entry.name for entry in target.parent.iterdir()] == ["engine.tensorrt"]


def forge(product: Path) -> None:
    """Another program, and a description that fits it."""
    (product / "run_engine.py").write_text("print('not ours')")
    files = json.loads((product / "engine.json").read_text())["files"]
    row = {"size_bytes": 17, "sha256": hashlib.sha256(b"print('not ours')").hexdigest()}
    change(product, files={**files, "run_engine.py": row})


@pytest.mark.parametrize("damage", [
    forge,
    lambda product: (product / "engine.plan").write_bytes(b"other"),
    lambda product: (product / "run_engine.py").unlink(),
    lambda product: change(product, plan_sha256="0" * 64),
    lambda product: change(product, files={**json.loads((product / "engine.json").read_text())["files"],
        "../outside": {"size_bytes": 1, "sha256": "0" * 64}}),
    lambda product: change(product, schema=99),
    lambda product: change(product, runtime="onnxruntime"),
])  # fmt: skip
def test_a_damaged_product_is_none(tmp_path, damage):
    write_product_of(tmp_path / "product", NAME, content=PLAN)
    assert find_product(tmp_path / "product") is not None
    damage(tmp_path / "product")
    assert find_product(tmp_path / "product") is None


def test_kernel_times_may_be_added_to(tmp_path):
    """trtexec writes to the file that it is given."""
    write_product_of(tmp_path / "product", NAME, content=PLAN)
    (tmp_path / "product" / "timing.cache").write_bytes(b"more times")
    assert find_product(tmp_path / "product") is not None


def test_this_machine_keeps_the_plan_of_each_engine_that_it_has_timed(tmp_path, monkeypatch):
    """The engines are those of ONNX Runtime; plans are put beside them."""
    wanted = experiment(tmp_path / "models", (4, 8))
    names = {candidate.model.name: candidate.name for candidate in (wanted.float_, *wanted.candidates)}

    def opener(model, settings, inputs, cache):
        engine = open_ort_engine(model, settings, inputs, cache)
        engine.plan_sha256 = keep_measured_plan(cache.parent, names[model.name], content=model.name.encode())[
            "plan_sha256"
        ]
        return engine

    monkeypatch.setattr(bench, "OPENERS", {"onnxruntime": opener})
    device, target = LocalDevice(tmp_path / "run" / "device"), tmp_path / "run" / "engine.x"
    results = device.measure(wanted)
    for result, candidate in zip(results, wanted.candidates, strict=True):
        product = device.fetch_engine(result, target)
        assert product is not None
        assert product.measured is not None
        assert product.measured.engine_ms == result.engine_ms
        assert (target / "engine.plan").read_bytes() == candidate.model.name.encode()
    assert LocalDevice(tmp_path / "elsewhere").fetch_engine(results[0], target) is None


def test_a_plan_that_cannot_be_kept_costs_no_result(tmp_path, monkeypatch):
    def opener(*arguments):
        engine = open_ort_engine(*arguments)
        engine.plan_sha256 = "0" * 64
        return engine

    monkeypatch.setattr(bench, "OPENERS", {"onnxruntime": opener})
    lines: list[str] = []
    (result,) = LocalDevice(tmp_path / "device").measure(experiment(tmp_path / "models", (4,)), lines.append)
    assert result.ratio is not None
    assert "was measured, and not kept as a product" in lines[-1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving("asyncssh", tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def device(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SMPQ_SSH_OPTIONS", server.options)
    return SshDevice(server.address, tmp_path / "here", delays_s=(0.01,))


@pytest.fixture
def there(device, server, tmp_path):
    """The product in the directory that a run has made on the device."""
    directory = f".cache/smpq/{tmp_path.name}"
    note_used(tmp_path / "here", device._where, directory)
    product = server.home / directory / "engines" / NAME
    product.parent.mkdir(parents=True)
    write_product_of(product, NAME, content=PLAN)
    yield product
    device.close()
    assert not product.exists()


def test_it_is_fetched_from_the_device_and_kept_here(device, there, tmp_path):
    target = tmp_path / "run" / "engine.tensorrt"
    product = device.fetch_engine(RESULT, target)
    assert product == find_product(target) == find_product(there)
    assert (target / "engine.plan").read_bytes() == PLAN
    device.close()
    other = tmp_path / "another run" / "engine.tensorrt"
    assert device.fetch_engine(RESULT, other) == product
    kept = machine_directory(tmp_path / "here", machine()) / "engines"
    assert [entry.name for entry in kept.iterdir()] == [NAME]


def test_what_the_device_no_longer_has_is_none(device, there, tmp_path):
    assert device.fetch_engine(result_of("f" * 16, "0" * 64), tmp_path / "engine") is None
    assert device.fetch_engine(result_of(NAME, "0" * 64), tmp_path / "engine") is None  # another plan of the same model
    assert not (tmp_path / "engine").exists()
    assert there.exists()


UNTRUSTED = (
    (lambda product: (product / "engine.plan").write_bytes(PLAN[:-1] + b"!"),
     "not what its own description says .engine.plan.: start again"),
    (lambda product: (product / "engine.plan").write_bytes(PLAN + bytes(2)), "came from it, which cannot be right"),
    (lambda product: (product / "engine.plan").write_bytes(PLAN[:5]),
     "not what its own description says .engine.plan."),
    (lambda product: change(product, files={"../../../.bashrc": {"size_bytes": 1, "sha256": "0" * 64}}),
     "files names others than"),
    (lambda product: (product / "engine.json").write_bytes(b"[" * 17_000_000), "came from it, which cannot be right"),
    (lambda product: (product / "engine.json").write_text("{}"), "damaged"),
)  # fmt: skip


def test_nothing_is_taken_on_trust(device, there, tmp_path):
    for damage, message in UNTRUSTED:
        write_product_of(there, NAME, content=PLAN)
        damage(there)
        with pytest.raises(UserError, match=message):
            device.fetch_engine(RESULT, tmp_path / "engine")
        assert not (tmp_path / "engine").exists()
