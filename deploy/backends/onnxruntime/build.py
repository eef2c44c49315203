"""Make an engine of an ONNX file: choose the session settings, try them, write both down."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
from msgspec.structs import replace

from calib.errors import UserError, first_line
from calib.files.storage import plain
from deploy.backends.base import BuildFailed
from deploy.backends.onnxruntime.engine import open_session, tensors_of
from deploy.backends.onnxruntime.record import OrtEngineRecord, keep_record
from deploy.lowering.onnx_files import copy_model, load_model, save_model, sha256, size_bytes
from deploy.runner.errors import DeviceError
from deploy.runner.ort import NO_OVERFLOW, SESSION_SETTINGS, integer_sums_overflow
from deploy.runner.ort_gpu import ORT_CPU, ORT_TENSORRT, why_missing

_ACCURACY = "accuracy_level"
_NBITS_ACCURACY = "session.qdq_matmulnbits_accuracy_level"
_NO_INTEGER_KERNELS = "session.disable_quant_qdq"
CPU = (ORT_CPU,)
_OPTIONS = {ORT_TENSORRT: {"trt_fp16_enable": "True", "trt_int8_enable": "True"}}
"""Without these the TensorRT provider refuses half-precision and Q/DQ graphs. It takes no other words for yes."""


def build_engine(
    model: Path, engine: Path, *, exact: bool = False, providers: Sequence[str] = CPU
) -> OrtEngineRecord | BuildFailed:
    """Copy the ONNX file `model` to `engine` and write how to load it into `engine.json` beside it.

    1. One thread and all graph optimisations, except those that change the plan: `WeightBiasQuantization` makes integer
       layers of float layers between two integer ones; `MatMulAddFusion` keeps linear layers with integer weights from
       their kernel, and a weight-only layer then takes 20 times as long.
    2. Integer kernels for x86 without VNNI sum pairs of products in 16 bits, which overflow with 8-bit weights (7 bits
       never do): `session.x64quantprecision` makes ONNX Runtime use a slower exact kernel for those weights, and is set
       on such a CPU alone: elsewhere the kernels are exact anyway, and as slow with it.
    3. Weight-only layers quantise their input block by block to 8 bits inside the kernel (accuracy level 4): the fast
       kernels do.
    4. `exact`: no integer kernels at all; the file is computed as it is written, in float, and where it asks for such
       a weight-only layer itself, without that. For `simulate` and for
       comparison.
    5. `providers` other than the CPU take what concerns them of this. TensorRT gets the file as it is, without any
       optimisation: those that come before it is asked move Q/DQ nodes to where the plan has none, quantise biases, and
       with integer kernels switched off fold INT8 weights to float. Only a DequantizeLinear that several nodes read is
       written once for each, which changes nothing.

    A file that onnxruntime refuses is a `BuildFailed`, and nothing is written. Raises UserError when `model` is missing
    or is not ONNX, an `engine.json` is there that cannot be read, or this machine lacks a provider.
    """
    if exact and _lowered_products(loaded := load_model(model)):
        with tempfile.TemporaryDirectory() as scratch:
            for node in _lowered_products(loaded):
                node.attributes[_ACCURACY] = ir.AttrInt64(_ACCURACY, 0)
            save_model(loaded, Path(scratch) / model.name)
            return build_engine(Path(scratch) / model.name, engine, exact=True, providers=providers)
    check_providers(providers)
    record = _settings(load_model(model), exact=exact, providers=providers)
    start = time.perf_counter()
    try:
        session = open_session(model, record)
    except DeviceError as error:
        raise UserError(str(error)) from error
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base class
        return BuildFailed(first_line(error))
    record = replace(
        record,
        build_seconds=round(time.perf_counter() - start, 3),
        sha256=sha256(model),
        size_bytes=size_bytes(model),
        inputs=tensors_of(session.get_inputs()),
        outputs=tensors_of(session.get_outputs()),
    )
    copy_model(model, engine)
    # A model with its weights in another file holds that file's name, so the copy is another file.
    record = replace(record, sha256=sha256(engine), size_bytes=size_bytes(engine))
    keep_record(engine, record)
    return record


def _lowered_products(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that ask for a kernel which quantises its input."""
    return [node for node in model.graph if node.attributes.get_int(_ACCURACY, 0) != 0]


def session_settings(model: Path, providers: Sequence[str] = CPU) -> dict[str, Any]:
    """Return how a session of an ONNX file is to be made: the fields of its record that `deploy.runner.ort` wants."""
    record = plain(_settings(load_model(model), exact=False, providers=providers))
    return {name: record[name] for name in SESSION_SETTINGS}


def has_providers(providers: Sequence[str]) -> bool:
    """Whether this onnxruntime was made with these execution providers."""
    return set(providers) <= set(ort.get_available_providers())


def check_providers(providers: Sequence[str]) -> None:
    """Raise UserError, with what to install, when this onnxruntime lacks an execution provider."""
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing:
        raise UserError(why_missing(missing, "'smpq[gpu]'"))


def _settings(model: ir.Model, *, exact: bool, providers: Sequence[str]) -> OrtEngineRecord:
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
    as_it_is = ORT_TENSORRT in providers
    disabled = ["WeightBiasQuantization"] if quantized and not as_it_is else []
    if not as_it_is and any(node.op_type == "MatMul" and _is_dequantized(node, 1) for node in model.graph):
        disabled.append("MatMulAddFusion")
    return OrtEngineRecord(
        sha256="",
        size_bytes=0,
        providers=tuple((name, _OPTIONS[name]) if name in _OPTIONS else name for name in providers),
        graph_optimization_level="ORT_DISABLE_ALL" if as_it_is else "ORT_ENABLE_ALL",
        disabled_optimizers=tuple(disabled),
        session_config=_session_config(model, quantized=quantized, exact=exact, providers=providers),
        intra_op_num_threads=1,
        inter_op_num_threads=1,
        versions={"onnxruntime": ort.__version__, "onnx": onnx.__version__},
        inputs=(),
        outputs=(),
        build_seconds=0.0,
    )


def _session_config(model: ir.Model, *, quantized: bool, exact: bool, providers: Sequence[str]) -> dict[str, str]:
    if exact:
        return {_NO_INTEGER_KERNELS: "1"}
    config: dict[str, str] = {}
    if tuple(providers) == CPU and quantized and integer_sums_overflow():
        config[NO_OVERFLOW] = "1"
    if tuple(providers) == CPU and any(_is_weight_only(node) for node in model.graph):
        config[_NBITS_ACCURACY] = "4"
    return config


def _is_weight_only(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and _is_dequantized(node, 1) and not _is_dequantized(node, 0)


def _is_dequantized(node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()  # a head that is tied to an embedding
    return producer is not None and producer.op_type == "DequantizeLinear"
