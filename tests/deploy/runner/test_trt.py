"""Running an engine: the order of the calls, on a GPU that is none. Nothing here was run on hardware."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.runner.errors import BuildError, CudaError, DeviceError
from deploy.runner.protocol import Protocol, measure_engines
from deploy.runner.trt import TrtEngine, layers_of_plan
from deploy.runner.trt_context import new_profiler
from deploy.runner.trt_log import load_module
from tests.deploy.backends.builds import needs_rtx
from tests.deploy.runner.fake_cuda import FakeCuda
from tests.deploy.runner.fake_gpu import fake_tensorrt

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def engine_on(cuda: FakeCuda, x: np.ndarray = X, plan: bytes = b"plan", **options) -> TrtEngine:
    return TrtEngine(fake_tensorrt(cuda, **options), cuda, plan, {"x": x})


def test_an_engine_is_set_up_run_once_and_then_captured():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    assert cuda.calls == [
        "context", "shape x", "allocate", "address x", "allocate", "address y", "copy to device", "synchronize",
        "enqueue", "synchronize", "capture", "enqueue",
    ]  # fmt: skip
    assert engine.clock == "CUDA events, CUDA graph (fake)"


def test_time_is_between_two_events_around_launches_of_the_graph_and_nothing_else():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    cuda.calls.clear()
    assert engine.time(3) == 0.5
    assert cuda.calls == ["event", "launch graph", "launch graph", "launch graph", "event"]


def test_without_graphs_the_clock_says_so():
    cuda = FakeCuda(graphs=False)
    engine = engine_on(cuda)
    cuda.calls.clear()
    assert engine.time(2) == 0.5
    assert cuda.calls == ["event", "enqueue", "enqueue", "event"]
    assert engine.clock == "CUDA events, no CUDA graph (fake)"


def test_an_engine_that_waits_while_it_is_enqueued_is_not_captured_and_runs_all_the_same():
    """A capture that failed leaves an error behind, which the next enqueue would take for its own."""
    cuda = FakeCuda()
    engine = engine_on(cuda, waits=True)
    assert not engine.captured
    assert engine.clock == "CUDA events, no CUDA graph (fake)"
    np.testing.assert_array_equal(engine.outputs()["y"], 2 * X)


@pytest.mark.parametrize("capturable", [True, False])
def test_an_engine_of_tensorrt_rtx_is_given_its_memory_and_asked_whether_it_can_be_captured(capturable):
    cuda = FakeCuda()
    engine = engine_on(cuda, rtx=True, capturable=capturable)
    assert engine.captured == capturable
    np.testing.assert_array_equal(engine.outputs()["y"], 2 * X)
    layers, note = engine.layers()
    assert (layers[0]["ms"] > 0, note) == (True, None)
    assert len(cuda.memory) == 3
    engine.close()
    assert cuda.memory == {}


def test_a_graph_is_used_or_not_as_told():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    engine.use_graph(False)
    assert engine.clock == "CUDA events, no CUDA graph (fake)"
    cuda.calls.clear()
    engine.run()
    engine.use_graph(True)
    engine.run()
    assert cuda.calls == ["enqueue", "synchronize", "launch graph", "synchronize"]


def test_engines_of_which_one_has_no_graph_both_run_without():
    for first, second in ((False, True), (True, False)):
        cudas = [FakeCuda(graphs=graphs) for graphs in (first, second)]
        engines = dict(zip(("float", "candidate"), map(engine_on, cudas), strict=True))
        timings = measure_engines(engines, "float", Protocol(rounds=3, round_ms=1.0))
        assert timings["candidate"].clock == "CUDA events, no CUDA graph (fake)"
        assert timings["candidate"].ratio == 1.0


def test_a_graph_that_one_measurement_did_without_is_used_by_the_next():
    float_, plain, captured = engine_on(FakeCuda()), engine_on(FakeCuda(graphs=False)), engine_on(FakeCuda())
    clocks = [
        measure_engines({"float": float_, "x": engine}, "float", Protocol(rounds=2))["float"].clock
        for engine in (plain, captured)
    ]
    assert clocks == ["CUDA events, no CUDA graph (fake)", "CUDA events, CUDA graph (fake)"]


def test_the_time_to_enqueue_is_of_an_idle_gpu():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    cuda.calls.clear()
    assert 0 < engine.enqueue_ms() < 50
    assert cuda.calls == ["synchronize", "launch graph"] * 20 + ["synchronize"]


def test_a_cold_call_is_behind_a_write_of_twice_the_cache_and_a_hot_one_behind_another_call():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    cuda.calls.clear()
    assert engine.hot_and_cold_ms() == (0.5, 2.5)
    assert cuda.calls == [
        "allocate",
        *["launch graph", "event", "launch graph", "event", "fill", "event", "launch graph", "event"] * 21,
    ]
    assert len(cuda.memory) == 2, "the buffer is given back"
    with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
        engine_on(FakeCuda(memory_bytes=100)).hot_and_cold_ms()


@pytest.mark.parametrize("rtx", [True, False])
@pytest.mark.parametrize("behaviour", [{"contexts": 1}, {"profiles": False}])
def test_a_profile_that_fails_costs_the_times_of_the_layers_and_says_why(behaviour, rtx):
    engine = engine_on(FakeCuda(), rtx=rtx, **behaviour)
    layers, note = engine.layers()
    assert [(layer["name"], layer["ms"]) for layer in layers] == [("double_myl0_1", None), ("unnoticed", None)]
    assert note.startswith("there are no times of the layers: the ")


def test_what_the_gpu_is():
    assert engine_on(FakeCuda()).gpu == {
        "name": "Fake", "uuid": "GPU-00000000-0000-0000-0000-000000000001", "compute_capability": [8, 7],
        "driver_version": [12, 6], "sm_count": 14, "l2_bytes": 128, "memory_bytes": 1 << 30,
    }  # fmt: skip


@pytest.mark.parametrize("captures", [True, False])
def test_outputs_and_other_inputs(captures):
    cuda = FakeCuda(graphs=captures)
    engine = engine_on(cuda)
    first = engine.outputs()
    assert first.keys() == {"y"}
    np.testing.assert_array_equal(first["y"], 2 * X)
    engine.load({"x": X + 1})
    np.testing.assert_array_equal(engine.outputs()["y"], 2 * X + 2)
    np.testing.assert_array_equal(first["y"], 2 * X)  # not overwritten by the second
    cuda.calls.clear()
    engine.run()
    assert cuda.calls == ["launch graph" if captures else "enqueue", "synchronize"]


def test_an_input_that_is_not_contiguous():
    turned = np.asfortranarray(X)
    np.testing.assert_array_equal(engine_on(FakeCuda(), turned).outputs()["y"], 2 * X)


@pytest.mark.parametrize(("inputs", "message"), [
    ({"x": X.astype(np.float16)}, "is float16 .* takes float32"), ({"x": X[:1]}, r"\(1, 3\).* takes float32 \(2, 3\)"),
    ({"y": X}, "takes the inputs x, and was given y"), ({}, "given none"),
])  # fmt: skip
def test_other_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(DeviceError, match=message):
        engine_on(FakeCuda()).load(inputs)


def test_what_cannot_be_opened_says_why_and_leaves_nothing_on_the_device():
    cuda = FakeCuda()
    with pytest.raises(
        DeviceError, match=r"shape \(5, 3\) does not fit .* \(-1, 3\): change the input or the batch sizes"
    ):
        engine_on(cuda, np.zeros((5, 3), np.float32))
    with pytest.raises(DeviceError, match="is float64"):
        engine_on(cuda, X.astype(np.float64))
    with pytest.raises(DeviceError, match="'y' depends on the values"):
        engine_on(cuda, output_rows=-1)
    with pytest.raises(BuildError, match="does not load on this machine: the plan is of another version"):
        engine_on(cuda, plan=b"other")
    small = FakeCuda(memory_bytes=30)
    with pytest.raises(BuildError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        engine_on(small)
    assert cuda.memory == small.memory == {}


def test_close_gives_everything_back():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    assert len(cuda.memory) == 2
    engine.close()
    assert cuda.memory == {}
    assert cuda.calls[-1] == "close"


def test_layers_carry_the_nodes_they_came_from_and_their_time_from_a_pass_of_its_own():
    cuda = FakeCuda()
    engine = engine_on(cuda)
    cuda.calls.clear()
    (doubled, unnoticed), note = engine.layers()
    assert note is None
    assert doubled["onnx_nodes"] == ["block.double", "block.double/Q"]
    assert doubled["ms"] == pytest.approx(0.25 + 0.055)  # the median of ten runs
    assert unnoticed["ms"] is None
    assert cuda.calls[:4] == ["context", "shape x", "address x", "address y"]
    assert cuda.calls.count("profiled enqueue") == 10
    assert "launch graph" not in cuda.calls
    cuda.calls.clear()
    engine.time(1)
    assert cuda.calls == ["event", "launch graph", "event"]


def test_layers_of_a_plan():
    cuda = FakeCuda()
    assert [layer["name"] for layer in layers_of_plan(fake_tensorrt(cuda), b"plan")] == ["double_myl0_1", "unnoticed"]
    with pytest.raises(BuildError, match="another version"):
        layers_of_plan(fake_tensorrt(cuda), b"other")


def test_engines_are_measured_by_the_common_protocol():
    cuda = FakeCuda()
    engines = {"float": engine_on(cuda), "candidate": engine_on(cuda)}
    timings = measure_engines(engines, "float", Protocol(rounds=5, round_ms=2.0))
    assert timings["candidate"].clock == "CUDA events, CUDA graph (fake)"
    assert timings["candidate"].ratio == 1.0


@needs_rtx
def test_the_real_modules_own_objects_are_used_rightly():
    """As far as that goes without a GPU: a profiler can be made, and what is no plan is refused with the runtime's
    reason.
    """
    module = load_module("tensorrt-rtx")
    profiler = new_profiler(module)
    profiler.report_layer_time("a", 0.5)
    assert profiler.times == {"a": [0.5]}
    with pytest.raises(BuildError, match=r"does not load on this machine: .*Serialization"):
        layers_of_plan(module, b"no plan" * 100)
