"""The machine and its state, read from trees of files like those of real machines."""

from __future__ import annotations

from pathlib import Path

from deploy.on_device.state import machine, read_state, throttled

JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\n# KERNEL_VARIANT: oot\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MODE_30W >\n< PM_CONFIG DEFAULT=2 >\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1420800\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2201600\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "729600000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "\n",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson(tmp_path):
    root = tree(tmp_path, JETSON)
    assert machine(root).startswith("NVIDIA Jetson AGX Orin Developer Kit (MODE_30W), ")
    assert read_state(root) == {
        "cpu_mhz": 2201.6,
        "gpu_mhz": 1300.5,
        "temperatures_c": {"cpu-thermal": 48.25},
        "jetson_release": "# R36 (release), REVISION: 4.3, GCID: 38968081",
        "power_mode": "MODE_30W",
    }


def test_another_power_mode_is_another_machine(tmp_path):
    slow = machine(tree(tmp_path / "slow", JETSON))
    fast = machine(tree(tmp_path / "fast", {**JETSON, "var/lib/nvpmodel/status": "pmode:0000"}))
    unnamed = machine(tree(tmp_path / "unnamed", {**JETSON, "var/lib/nvpmodel/status": "pmode:0007"}))
    assert "(MAXN)" in fast
    assert "(mode 7)" in unnamed
    assert len({slow, fast, unnamed}) == 3


def test_a_machine_that_tells_nothing(tmp_path):
    assert machine(tmp_path)
    assert set(read_state(tmp_path).values()) == {None}


def test_a_pc_is_named_by_its_processor(tmp_path):
    root = tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t: avx2\n"})
    assert machine(root).startswith("AMD EPYC 7B13, ")


def test_this_machine():
    assert machine() == machine()
    assert set(read_state()) == {"cpu_mhz", "gpu_mhz", "temperatures_c", "jetson_release", "power_mode"}


def test_a_clock_that_fell_is_a_hint():
    def clocks(cpu, gpu):
        return {"cpu_mhz": cpu, "gpu_mhz": gpu}

    assert throttled(clocks(2000.0, 1300.0), clocks(2000.0, 1100.0)) is True
    assert throttled(clocks(2000.0, 1300.0), clocks(1900.0, 1300.0)) is False
    assert throttled(clocks(2000.0, None), clocks(1700.0, None)) is True
    assert throttled(clocks(None, 1300.0), clocks(2000.0, None)) is None


def test_a_name_can_be_printed(tmp_path):
    root = tree(tmp_path, {"proc/cpuinfo": "model name\t: EPYC\x1b[2J\u202e\n"})
    assert machine(root).startswith("EPYC?[2J?, ")
