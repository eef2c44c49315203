"""What is kept of an engine on a GPU: figures, what explains them, and the state of the machine. On a GPU that is
none.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from calib.errors import UserError
from deploy.devices.bundle import keep_asked, read_results, write_bundle
from deploy.runner import bench, main
from deploy.runner.errors import BuildError
from deploy.runner.main import run_experiment
from deploy.runner.trt import TrtEngine
from tests.deploy.experiments import experiment
from tests.deploy.runner.fake_cuda import FakeCuda
from tests.deploy.runner.fake_gpu import fake_tensorrt

QUIET = {
    "cpu_mhz": 3000.0,
    "gpu_mhz": 1300.0,
    "gpu_max_mhz": 1300.0,
    "temperatures_c": None,
    "limits": [],
    "counters": {},
}
HOT = {**QUIET, "limits": ["thermal slowdown by the hardware"]}


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measure a candidate beside a float engine, on GPUs of their own; `states` are what the machine tells, one after
    the other.
    """

    def measured(float_=None, candidate=None, states=(), **behaviour):
        wanted = experiment(tmp_path / "models", (4,), inputs={"x": np.ones((2, 3), np.float32)}, batch=2)
        cudas = [float_ or FakeCuda(), candidate or FakeCuda()]
        modules = [fake_tensorrt(cudas[0]), fake_tensorrt(cudas[1], **behaviour)]
        told = iter(states)
        opened = iter(zip(modules, cudas, strict=True))

        def opener(_model, _settings, inputs, _cache):
            module, cuda = next(opened)
            return TrtEngine(module, cuda, b"plan", inputs)

        monkeypatch.setattr(bench, "OPENERS", {"onnxruntime": opener})
        monkeypatch.setattr(bench, "read_state", lambda: next(told, QUIET))
        write_bundle(wanted, tmp_path / "bundle")
        keep_asked(wanted, tmp_path)
        lines = []
        run_experiment(tmp_path / "bundle", lines.append)
        found = read_results(tmp_path / "bundle" / "measurements.json", tmp_path)
        return found.results[0], found, lines

    return measured


def test_what_is_told_of_an_engine_on_a_gpu(measure):
    result, found, _ = measure()
    assert (result.failed, result.ratio, result.clock) == (None, 1.0, "CUDA events, CUDA graph (fake)")
    assert result.enqueue_ms > 0
    assert (result.hot_ms, result.cold_ms, result.notes) == (0.5, 2.5, ())
    assert [layer.name for layer in result.layers] == ["double_myl0_1", "unnoticed"]
    assert (found.hardware.gpu.name, found.hardware.gpu.l2_bytes, found.hardware.gpu.driver_version) == (
        "Fake",
        128,
        (12, 6),
    )


@pytest.mark.parametrize("graphs", [(True, False), (False, True)])
def test_a_candidate_that_is_captured_in_another_way_than_the_float_engine_is_measured(measure, graphs):
    float_, candidate = (FakeCuda(graphs=own) for own in graphs)
    result, _, _ = measure(float_, candidate)
    assert (result.failed, result.ratio, result.clock) == (None, 1.0, "CUDA events, no CUDA graph (fake)")


@pytest.mark.parametrize(
    ("behaviour", "note"),
    [
        ({"contexts": 1}, "there are no times of the layers: the runtime makes no second context"),
        ({"profiles": False}, "there are no times of the layers: the profiler has no access"),
        ({"inspects": False}, "there is no description of the layers: ValueError: unknown description"),
    ],
)
def test_a_description_that_fails_costs_no_figure(measure, behaviour, note):
    result, _, _ = measure(**behaviour)
    assert (result.failed, result.ratio) == (None, 1.0)
    assert [text[: len(note)] for text in result.notes] == [note]
    assert (result.layers is None) == ("inspects" in behaviour)


def test_a_buffer_that_does_not_fit_costs_no_figure(measure):
    result, _, _ = measure(candidate=FakeCuda(memory_bytes=100))
    assert (result.ratio, result.hot_ms, result.cold_ms) == (1.0, None, None)
    assert result.notes[0].startswith("there is no time with a cold L2 cache: CudaError: CUDA_ERROR_OUT_OF_MEMORY")


def test_it_is_measured_again_while_the_machine_slows_down(measure):
    result, _, lines = measure(states=[QUIET, HOT, QUIET, QUIET])
    assert (result.state.timings, result.state.throttled) == (2, ())
    assert "slowed down" not in lines[-1]


def test_after_three_times_it_is_kept_with_the_reason(measure):
    result, _, lines = measure(states=[HOT] * 6)
    assert (result.state.timings, result.state.throttled) == (3, ("GPU: thermal slowdown by the hardware",))
    assert lines[-1].endswith("; the machine slowed down each time: GPU: thermal slowdown by the hardware")


def test_the_state_is_that_around_the_rounds(measure):
    """It is read when the engine is warm, before its first round, and right behind the last one."""
    candidate = FakeCuda()
    seen = []
    measure(candidate=candidate, states=(seen.append(len(candidate.calls)) or QUIET for _ in range(2)))
    before, after = seen
    assert candidate.calls[:before].count("launch graph") >= 400, "200 ms of half a millisecond"
    assert "event" in candidate.calls[before:after]
    assert "fill" not in candidate.calls[:after]


def test_a_throttled_result_says_what_its_clocks_say(measure, tmp_path):
    measure()
    file = tmp_path / "bundle" / "measurements.json"
    data = json.loads(file.read_text())
    for throttled, before, message in (
        (["a bad day"], QUIET, "a bad day is said to have slowed the machine down, and its clocks say nothing"),
        ([], HOT, "nothing is said to have slowed the machine down, and its clocks say GPU: thermal slowdown"),
    ):
        data["results"][0]["state"].update(throttled=throttled, before=before)
        file.write_text(json.dumps(data))
        with pytest.raises(UserError, match=message):
            read_results(file, tmp_path)


def test_after_a_description_that_failed_the_float_engine_shows_that_cuda_still_works(measure, monkeypatch):
    """What the profiler breaks must not be taken for a refusal of the next candidate."""

    class Broken(TrtEngine):
        def layers(self):
            self._cuda.runtime_error = True
            raise BuildError("the profiler ended all work of this process")

    monkeypatch.setattr("tests.deploy.runner.test_bench.TrtEngine", Broken)
    shared = FakeCuda(graphs=False)
    with pytest.raises(main.DeviceError, match="the float engine does not run"):
        measure(shared, shared)
