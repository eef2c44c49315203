"""Whether an engine runs on an NVIDIA Jetson Orin."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.files.report import ReportFile
from deploy.report.answer import Answer, bare, some

_ORIN = "sm87"


def on_orin(report: ReportFile) -> Answer:
    """Say what carries over to an Orin, and on which machine the engine was timed."""
    target, engine, where = report.target, report.engine, report.destination
    if where.portable and not where.needs_gpu:
        first = f"On its CPU, not on its GPU: {_named(engine)} is an ONNX file and runs wherever ONNX Runtime does."
        more = [timed_on(report)]
        if not where.timed:
            more.append(
                "It is for evaluation: integer weights are turned to floats and computed as such, so it is not faster "
                "anywhere."
            )
        more.append("For its GPU, run again with `--target jetson-orin`, which offers what its TensorRT has.")
    elif where.portable:
        first = (
            f"Where onnxruntime-gpu runs on it, perhaps: {_named(engine)} is an ONNX file, "
            "and its providers choose their kernels there."
        )
        more = [
            timed_on(report),
            (
                "Nothing of it was verified on Orin; run again with `--target jetson-orin` for an engine of TensorRT "
                "alone."
            ),
        ]
    elif _ORIN in where.compute_capabilities:
        first = (
            "It is made for it: the formats are those of Orin's TensorRT, "
            f"which builds its engine from model.{target}.onnx itself."
        )
        more = [
            timed_on(report),
            (
                "An engine that was built and timed somewhere else says nothing about Orin: use `--device`, or `smpq "
                "bundle`."
            ),
        ]
        if engine is not None:
            more.insert(0, f"The plan that was measured is in engine.{target}/, with two programs that run it.")
    else:
        built = f" ({', '.join(sorted(engine))})" if isinstance(engine, Mapping) else ""
        first = (
            f"Not this engine{built}: a plan runs on the GPU kind and the TensorRT it was built with. "
            "Orin is SM87 and needs its own."
        )
        more = [
            f"Carry model.{target}.onnx of this run to the device and build it there with the TensorRT of its JetPack.",
            f"Verified is {_verified(report)}. Not verified are kernels, latency and accuracy on Orin itself.",
            timed_on(report),
        ]
    if report.not_on_orin:
        more.append(f"Orin's GPU has no kernels for {some(report.not_on_orin)}: use w8a8, w4a16 with blocks, or fp16.")
    return Answer("Will it run on my Orin?", "note", (first, *more))


def timed_on(report: ReportFile) -> str:
    """Name the machine that timed the engine, which is not always this one."""
    if not report.machine:
        return "It was not timed: its latency has to be measured on the machine that it is for."
    return f"It was timed on {bare(report.machine)}; the latency on another machine has to be measured there."


def _verified(report: ReportFile) -> str:
    graph = report.verification.stages.get("onnx") if report.verification is not None else None
    ran = graph is not None and graph.mean is not None
    return "the accuracy of that ONNX file" if ran else "nothing that carries over to Orin"


def _named(engine: str | Mapping[str, str] | None) -> str:
    return engine if isinstance(engine, str) else "the engine"
