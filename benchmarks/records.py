"""What every benchmark writes down: date, processor, versions, and its rows, printed and kept as JSON."""

import datetime as dt
import json
import os
import platform
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "smpq", "torch", "numpy", "scipy", "onnx", "onnxruntime", "tensorrt-rtx", "transformers", "ray", "shapiq",
    "torchvision", "timm", "monai", "diffusers", "x-transformers", "vit-pytorch", "pytorchcv",
)  # fmt: skip


def cpu_model() -> str:
    """Name the processor and the instructions that decide the speed of integer kernels."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    return f"{names[0] if names else platform.machine()} ({', '.join(known)})"


def versions() -> dict[str, str]:
    """Return the installed versions of what decides the result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def keep(name: str, command: str, seeds: list[int], rows: list[dict], **more: object) -> None:
    """Print a record and keep it as `results/NAME.json`."""
    record = {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "device": {"cpu": cpu_model(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": versions(),
        "seed": seeds,
        "command": command,
        **more,
        "rows": rows,
    }
    text = json.dumps(record, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


class Parts:
    """Results by name, kept in a file as they are made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = json.loads(path.read_text()) if path.is_file() else {}

    def __call__(self, name: str, make) -> object:  # noqa: ANN001 - any function without arguments
        if name not in self._known:
            self._known[name] = make()
            self._path.write_text(json.dumps(self._known))
        return self._known[name]

    def all(self) -> dict[str, object]:
        """Return the results so far, in the order in which they were made."""
        return self._known
