"""How much memory may still be taken."""

import math

import pytest

from calib import free_memory
from calib.free_memory import free_bytes


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A machine with 4 GiB that are free, and no container."""
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 4194304 kB\n")
    monkeypatch.setattr(free_memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "_CONTAINER", tmp_path)
    return tmp_path


def contained(place, most, used, cached):
    for name, text in {"max": most, "current": used, "stat": f"anon 5\ninactive_file {cached}"}.items():
        (place / f"memory.{name}").write_text(f"{text}\n")


def test_what_is_free_on_the_machine(system):
    assert free_bytes() == 4 * 2**30


@pytest.mark.parametrize(
    ("most", "used", "cached", "free"),
    [(3 * 2**30, 2**30, 0, 2 * 2**30), (2**30, 2**30, 2**20, 2**20), (2**30, 2**31, 0, 0), (2**40, 0, 0, 4 * 2**30)],
)
def test_a_container_may_have_less(system, most, used, cached, free):
    contained(system, most, used, cached)
    assert free_bytes() == free


def test_a_container_without_a_limit(system):
    contained(system, "max", 2**30, 0)
    assert free_bytes() == 4 * 2**30


def test_a_system_that_does_not_say(system):
    (system / "meminfo").unlink()
    assert free_bytes() == math.inf
