"""Shared libraries that have the functions of NVIDIA's, so that software which needs those loads without them; made
with a C compiler.

Nothing is computed: a function that is not written out in a `.c` file beside this one returns 0.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent
TOOLS = ("cc", "nm", "readelf")
_NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cu|nv)[^\]]*)\]")
_UNDEFINED = re.compile(r"\s[UwW] ([A-Za-z_]\w*)(?:@@?([\w.]+))?$", re.MULTILINE)
_DEFINED = re.compile(r"^(?!static)[\w *]+?\b(\w+)\([^;]*\) *\{", re.MULTILINE)
_UNVERSIONED = {
    "libnvinfer": re.compile(r"createInfer|getPluginRegistry|getBuilderPluginRegistry|getInfer"),
    "libnvinfer_plugin": re.compile(r"initLibNvInferPlugins"),
    "libnvonnxparser": re.compile(r"createNvOnnx|getNvOnnx"),
    "libcuda": re.compile(r"cu[A-Z]"),
}
"""Which library has the functions whose name comes without a version."""


def missing_tools() -> list[str]:
    """Return what is needed to make the libraries and is not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def make_stubs(readers: Sequence[Path], folder: Path, without: Sequence[str] = ()) -> list[str]:
    """Make every library of NVIDIA's that `readers` link into `folder`, except those `without`; returns their names.

    Functions are what the readers look for, with their symbol versions. A function of a `.c` file here takes the place
    of an empty one.
    """
    libraries = sorted({name for reader in readers for name in _NEEDED.findall(_told("readelf", "-dW", str(reader)))})
    symbols: dict[str, set[str]] = defaultdict(set)
    for reader in readers:
        for name, version in _UNDEFINED.findall(_told("nm", "-D", str(reader))):
            library = _library_of(name, version, libraries)
            if library is not None:
                symbols[library].add(name)
    for library in libraries:
        if library not in without:
            _compile(library, symbols[library], folder)
    return libraries


def _library_of(name: str, version: str, libraries: Sequence[str]) -> str | None:
    if version:
        return version if version in libraries else None
    stem = next((stem for stem, names in _UNVERSIONED.items() if names.match(name)), None)
    return next((library for library in libraries if stem and library.startswith(f"{stem}.so")), None)


def _compile(library: str, symbols: set[str], folder: Path) -> None:
    source = SOURCES / f"{library.split('.so', maxsplit=1)[0]}.c"
    written = source.read_text("utf-8") if source.is_file() else ""
    empty = "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(symbols - set(_DEFINED.findall(written))))
    code, versions = folder / f"{library}.c", folder / f"{library}.map"
    code.write_text(f"{written}\n{empty}", "utf-8")
    versions.write_text(f"{library} {{ global: *; }};\n", "utf-8")
    # without optimisation and with no builtins: an empty function may have the name of one that the compiler knows
    options = ["-shared", "-fPIC", "-O0", "-fno-builtin", "-w", f"-Wl,-soname,{library}"]
    versioned = [] if library.startswith(("libnv", "libcuda.")) else [f"-Wl,--version-script={versions}"]
    subprocess.run(
        ["cc", *options, *versioned, "-o", str(folder / library), str(code)], check=True, capture_output=True, text=True
    )


def _told(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
