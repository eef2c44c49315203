"""Broken graphs and situations: a clear message, or a fallback that is reported, and never a wrong engine."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.data import check_batches, check_model
from calib.errors import UserError
from calib.formats.format import FP32, Format
from calib.network.fold import trace_folded
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from deploy.backends import backend_of, onnxruntime, tensorrt
from deploy.lowering import onnx_files
from deploy.lowering.export import export_float
from deploy.lowering.fp16_range import beyond_half
from deploy.lowering.onnx_files import load_model, save_model
from deploy.targets.target import Target, capability, target_from_name
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from tests.commands import TINY, refused
from tests.deploy.backends.builds import needs_rtx
from tests.deploy.networks import mlp, residual
from tests.deploy.unusual import SOUND, STAY_FLOAT, Anything, Network, conv, two_layers

BATCH = 8
HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
INT8, INT4 = Format.from_text("w8a8"), Format.from_text("w4a16")


class Case:
    """A traced and exported network, to be lowered for one target after the other."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], directory: Path) -> None:
        example = tuple(tensor[:2] for tensor in inputs)
        self.inputs = inputs
        self.traced, _ = trace_folded(model.eval(), example)
        self.units, self.skipped = find_units(self.traced)
        self.float_model = directory / "model.float.onnx"
        export_float(self.traced, self.units, self.float_model)

    def calibration(self, target: Target) -> Calibration:
        settings = CalibrationSettings("mse", "nearest", target.activation_scheme)
        return Calibration(self.traced, self.units, [Batch(self.inputs, None)], settings)

    def lower(self, name: str, *chosen: Format):
        """Give the layers these formats in order, the last one to all that follow; returns the file and the outputs to
        expect.
        """
        target = target_from_name(name)
        rules = QdqRules(target.activation_scheme, target.quantize_outputs, target.quantize_skips, name == "ort-cpu")
        quantizer = FakeQuantizer(self.traced, self.units, self.calibration(target), rules)
        plan = quantizer.plan({unit.path: chosen[min(index, len(chosen) - 1)] for index, unit in enumerate(self.units)})
        path = self.float_model.with_name(f"model.{name}.onnx")
        backend_of(target).lower(self.float_model, plan, self.units, path, len(self.inputs[0]))
        outputs = torch.utils._pytree.tree_leaves(self.traced.run(self.inputs, quantizer.edits(plan)))
        return path, [output.numpy() for output in outputs]


def _samples(shape: tuple[int, ...] | None) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return (torch.randn(BATCH, *shape) if shape is not None else torch.randint(0, 20, (BATCH, 5)),)


def _run(path: Path, inputs: tuple[Tensor, ...]):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options)
    return session.run(
        None, {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    )


def _assert_equal(results, expected):
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert np.isfinite(result).all()
        assert np.abs(result - wanted).mean() <= 0.02 * wanted.std() + 1e-6


@pytest.mark.parametrize("name", SOUND)
def test_what_is_unusual_but_sound_gives_a_right_engine(name, tmp_path):
    make, shape = SOUND[name]
    torch.manual_seed(0)
    case = Case(make(), _samples(shape), tmp_path)
    assert sorted(each.path for each in case.skipped) == STAY_FLOAT.get(name, [])
    path, expected = case.lower("ort-cpu", INT8)
    _assert_equal(_run(path, case.inputs), expected)
    engine = tmp_path / "engine.onnx"
    assert isinstance(onnxruntime.build_engine(path, engine), onnxruntime.OrtEngineRecord)
    _assert_equal(onnxruntime.load_engine(engine).run(tuple(tensor.numpy() for tensor in case.inputs)), expected)
    path, expected = case.lower("tensorrt-rtx", INT8)
    _assert_equal(_run(path, case.inputs), expected)
    if HAS_RTX:
        assert isinstance(tensorrt.build_plan(path, tmp_path / "plan", "tensorrt-rtx", "sm86"), tensorrt.Built)


@needs_rtx
def test_four_bits_with_an_odd_number_of_weights(tmp_path):
    answer = capability(target_from_name("tensorrt-rtx"), "linear", INT4, 7, 5)
    assert (answer.status, "even" in answer.note) == ("refused", True)
    case = Case(Network(lambda self, x: self.a(x), a=nn.Linear(7, 5)), _samples((7,)), tmp_path)
    path, _ = case.lower("tensorrt-rtx", INT4)
    outcome = tensorrt.build_plan(path, tmp_path / "plan", "tensorrt-rtx", "sm86")
    assert isinstance(outcome, tensorrt.BuildFailed)
    assert "even number" in outcome.reason


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "tensorrt-rtx", "simulate"])
def test_a_block_that_does_not_divide_the_inputs_is_refused(target):
    answer = capability(target_from_name(target), "linear", Format.from_text("w4a16b16"), 40, 8)
    assert answer.status == "refused"
    assert "do not divide" in answer.note


def _branch(self, x):
    return self.a(x) if x.sum() > 0 else self.b(x)


def _cond(self, x):
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (self.a(x),))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_branch, "cannot be traced by torch.export"),
        (_cond, "branches on values"),
        (lambda self, x: self.b(self.a(x) + torch.randn_like(x)), "draws random numbers .randn_like."),
    ],
)
def test_control_flow_and_random_numbers(forward, message):
    with pytest.raises(UserError, match=message):
        TracedModel(Network(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8)).eval(), _samples((8,)))


def test_a_forward_that_takes_any_number_of_inputs_keeps_its_batch_free(tmp_path):
    inputs = (torch.randn(BATCH, 8), torch.randn(BATCH, 8))
    case = Case(Anything(), inputs, tmp_path)
    assert case.traced.dynamic_batch
    path, expected = case.lower("ort-cpu", INT8)
    _assert_equal(_run(path, inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_float_type(dtype):
    with pytest.raises(UserError, match=r"hand over model.float\(\)"):
        check_model(nn.Linear(4, 4).to(dtype))


def test_weights_that_are_not_numbers():
    model = nn.Linear(4, 4)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(UserError, match="'weight' of the model holds NaN"):
        check_model(model)


def test_a_batch_without_samples():
    with pytest.raises(UserError, match="sample"):
        check_batches([Batch((torch.zeros(0, 4),), torch.zeros(0))])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_activations_that_are_not_numbers_name_the_layer(value, tmp_path):
    model = Network(lambda self, x: torch.sigmoid(self.b(self.a(x) * 0 + self.c)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    model.register_buffer("c", torch.tensor(value))
    case = Case(model, _samples((8,)), tmp_path)
    with pytest.raises(UserError, match="the input of b holds NaN or infinity"):
        case.calibration(target_from_name("ort-cpu"))


@pytest.mark.parametrize(("factor", "message"), [(1e6, r"reaches \d"), (1e-8, "stays below")])
def test_what_half_precision_does_not_hold(factor, message, tmp_path):
    model = Network(
        lambda self, x: self.b(self.a(x) * factor) / factor, a=nn.Linear(8, 8), b=nn.Linear(8, 8, bias=False)
    )
    case = Case(model, _samples((8,)), tmp_path)
    with pytest.raises(UserError, match=message):
        beyond_half(case.calibration(target_from_name("tensorrt-rtx")), case.units)


def test_what_half_precision_holds(tmp_path):
    make, shape = SOUND["activations of zero"]
    case = Case(make(), _samples(shape), tmp_path)
    beyond_half(case.calibration(target_from_name("tensorrt-rtx")), case.units)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt-rtx"])
def test_a_float_model_of_an_old_opset(target, tmp_path):
    exported = mlp()
    plan, _ = exported.plan(exported.formats("w8a8"), target)
    model = onnx.load(str(exported.path))
    model.opset_import[0].version = 13
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(UserError, match=r"has opset 13, .* exported again"):
        backend_of(target_from_name(target)).lower(tmp_path / "old.onnx", plan, exported.units, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_the_float_model_replaced_by_another_ones(tmp_path):
    exported = residual()
    plan, _ = exported.plan(exported.formats("w8a8"), "ort-cpu")
    shutil.copy(mlp().path, tmp_path / "model.float.onnx")
    with pytest.raises(UserError, match="is not of this model, it has no layer stem"):
        backend_of(target_from_name("ort-cpu")).lower(
            tmp_path / "model.float.onnx", plan, exported.units, tmp_path / "out.onnx"
        )


def test_a_damaged_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(mlp().path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as an ONNX model"):
        load_model(tmp_path / "model.onnx")


def test_a_shared_initialiser_that_one_layer_quantises(tmp_path):
    torch.manual_seed(0)
    model = Network(
        lambda self, x: self.b(F.relu(self.a(x))), a=nn.Linear(8, 8, bias=False), b=nn.Linear(8, 8, bias=False)
    )
    model.b.weight.data.copy_(model.a.weight.data)
    path, expected = Case(model, _samples((8,)), tmp_path).lower("ort-cpu", INT8, FP32)
    _assert_equal(_run(path, _samples((8,))), expected)


def test_paths_that_are_not_ascii(tmp_path):
    directory = tmp_path / "Größe 模型"
    directory.mkdir()
    case = Case(Network(two_layers, a=conv(8, 8, 3), b=conv(8, 8, 3)), _samples((8, 8, 8)), directory)
    path, expected = case.lower("ort-cpu", INT8)
    engine = directory / "engine.onnx"
    assert isinstance(onnxruntime.build_engine(path, engine), onnxruntime.OrtEngineRecord)
    _assert_equal(onnxruntime.load_engine(engine).run(tuple(tensor.numpy() for tensor in case.inputs)), expected)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_leaves_nothing_behind(code, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    model = ir.load(mlp().path)
    monkeypatch.setattr(onnx_files.ir, "save", fail)
    with pytest.raises(
        UserError, match=f"cannot write .*out.onnx: {'the disk is full' if code == errno.ENOSPC else os.strerror(code)}"
    ):
        save_model(model, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_run_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "Not a directory" in refused("run", *TINY, "--budget", "size=0.9x", "--out", tmp_path / "file" / "run")
