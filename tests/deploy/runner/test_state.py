"""The machine and its state, read from trees of files like those of real machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.runner.state import jetson_release, machine, power_mode, read_state, throttle_reasons

JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\n# KERNEL_VARIANT: oot\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MODE_30W >\n"
    "< PM_CONFIG DEFAULT=2 >\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1420800\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2201600\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "27\n",
    "sys/class/hwmon/hwmon3/oc3_throt_en": "1\n",
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
        "gpu_max_mhz": 1300.5,
        "temperatures_c": {"cpu-thermal": 48.25},
        "limits": [],
        "counters": {"oc1_event_cnt": 0, "oc3_event_cnt": 27},
    }
    assert jetson_release(root) == "# R36 (release), REVISION: 4.3, GCID: 38968081"
    assert power_mode(root) == "MODE_30W"


def test_the_gpu_of_a_thor(tmp_path):
    root = tree(tmp_path, {f"sys/class/devfreq/{name}/cur_freq": "1575000000\n" for name in ("gpu-gpc-0", "emc")})
    assert read_state(root)["gpu_mhz"] == 1575.0


def test_another_power_mode_is_another_machine(tmp_path):
    slow = machine(tree(tmp_path / "slow", JETSON))
    fast = machine(tree(tmp_path / "fast", {**JETSON, "var/lib/nvpmodel/status": "pmode:0000"}))
    unnamed = machine(tree(tmp_path / "unnamed", {**JETSON, "var/lib/nvpmodel/status": "pmode:0007"}))
    assert "(MAXN)" in fast
    assert "(mode 7)" in unnamed
    assert len({slow, fast, unnamed}) == 3


def test_a_machine_that_tells_nothing(tmp_path):
    assert machine(tmp_path)
    assert [value for value in read_state(tmp_path).values() if value] == []
    assert throttle_reasons(read_state(tmp_path), read_state(tmp_path)) == []


def test_a_pc_is_named_by_its_processor(tmp_path):
    root = tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t: avx2\n"})
    assert machine(root).startswith("AMD EPYC 7B13, ")


def test_this_machine():
    assert machine() == machine()
    assert set(read_state()) == {"cpu_mhz", "gpu_mhz", "gpu_max_mhz", "temperatures_c", "limits", "counters"}


def reading(**values):
    return {"cpu_mhz": None, "gpu_mhz": None, "limits": [], "counters": {}, **values}


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        (reading(gpu_mhz=1300.0), reading(gpu_mhz=1100.0), ["the clock of the GPU fell from 1300 to 1100 MHz"]),
        (reading(cpu_mhz=2000.0, gpu_mhz=1300.0), reading(cpu_mhz=1900.0, gpu_mhz=1300.0), []),
        (reading(cpu_mhz=2000.0), reading(cpu_mhz=1700.0), ["the clock of the CPU fell from 2000 to 1700 MHz"]),
        (reading(gpu_mhz=1300.0), reading(cpu_mhz=2000.0), []),
        (reading(), reading(limits=["power brake"]), ["GPU: power brake"]),
        (reading(limits=["power brake"]), reading(), ["GPU: power brake"]),
        (reading(limits=["power cap"]), reading(limits=["power cap"]), []),
        (reading(counters={"oc3_event_cnt": 27}), reading(counters={"oc3_event_cnt": 29}), ["oc3_event_cnt rose by 2"]),
        (reading(counters={"oc3_event_cnt": 27}), reading(counters={"oc3_event_cnt": 27, "oc1_event_cnt": 1}), []),
    ],
)
def test_what_slows_a_machine_down(before, after, reasons):
    assert throttle_reasons(before, after) == reasons


def test_thermal_events_of_all_cores_are_counted(tmp_path):
    files = {f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": f"{core}\n" for core in (1, 2)}
    assert read_state(tree(tmp_path, files))["counters"] == {"core_throttle_count": 3}


def test_a_name_can_be_printed(tmp_path):
    root = tree(tmp_path, {"proc/cpuinfo": "model name\t: EPYC\x1b[2J\u202e\n"})
    assert machine(root).startswith("EPYC?[2J?, ")
