"""Measure a run's engine again, independently: plain onnxruntime and numpy, nothing of smpq.

Usage: recheck_engine.py RUN [CIFAR10_DIR]

Prints one JSON object: the median ratio of the engine's time to the float engine's with its bootstrap interval
(interleaved rounds, CPU clock, one thread, batch 1), and with a `cifar-10-batches-py` directory the top-1 of both over
the 10,000 test images.
"""

import json
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
ROUNDS = 51


def session(run: Path, name: str) -> ort.InferenceSession:
    """Load an engine as its entry in engine.json says."""
    entry = json.loads((run / "engine.json").read_text())["engines"][name]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, entry["graph_optimization_level"])
    options.intra_op_num_threads = entry["intra_op_num_threads"]
    options.inter_op_num_threads = entry["inter_op_num_threads"]
    for key, value in entry["session_config"].items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(
        str(run / name), options, providers=entry["providers"], disabled_optimizers=entry["disabled_optimizers"]
    )


def best_of(model: ort.InferenceSession, feeds: dict, seconds: float = 0.015) -> float:
    """Smallest of three means of CPU seconds a call."""
    start = time.thread_time()
    model.run(None, feeds)
    calls = max(2, int(seconds / 3 / max(time.thread_time() - start, 1e-6)))
    means = []
    for _ in range(3):
        start = time.thread_time()
        for _ in range(calls):
            model.run(None, feeds)
        means.append((time.thread_time() - start) / calls)
    return min(means)


def top1(model: ort.InferenceSession, images: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose largest output is the label's."""
    name = model.get_inputs()[0].name
    hits = sum(
        int((model.run(None, {name: images[i : i + 100]})[0].argmax(1) == labels[i : i + 100]).sum())
        for i in range(0, len(images), 100)
    )
    return 100 * hits / len(images)


def main(run: Path, cifar10: Path | None) -> None:
    """Measure, and print the record."""
    report = json.loads((run / "report.json").read_text())
    engine, baseline = session(run, report["engine"]), session(run, report["float_engine"])
    generator = np.random.default_rng(1)
    feeds = {}
    for entry in engine.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in entry.shape]
        feeds[entry.name] = generator.standard_normal(shape).astype(np.float32)
    for _ in range(20):
        engine.run(None, feeds)
        baseline.run(None, feeds)
    ratios = np.array([best_of(engine, feeds) / best_of(baseline, feeds) for _ in range(ROUNDS)])
    resampled = np.median(ratios[generator.integers(0, ROUNDS, (2000, ROUNDS))], axis=1)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "run": report["task"],
        "budget": report["budget"],
        "onnxruntime": ort.__version__,
        "machine": report["machine"],
        "ratio": float(np.median(ratios)),
        "interval": [float(value) for value in np.percentile(resampled, [2.5, 97.5])],
        "reported_ratio": report["latency"]["ratio"] if report["latency"] else None,
    }
    if cifar10 is not None:
        with (cifar10 / "test_batch").open("rb") as stream:
            batch = pickle.load(stream, encoding="bytes")  # noqa: TID251 - the official file, named by the user
        images = (batch[b"data"].reshape(-1, 3, 32, 32).astype(np.float32) / 255 - MEAN) / STD
        labels = np.array(batch[b"labels"])
        record |= {"engine_top1": top1(engine, images, labels), "float_top1": top1(baseline, images, labels)}
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None)
