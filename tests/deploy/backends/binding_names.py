"""Write down which names the published Python bindings of a TensorRT version know.

    pip download --no-deps tensorrt-cu12-bindings==10.3.0
    python tests/deploy/backends/binding_names.py tensorrt_cu12_bindings-10.3.0-*.whl tests/deploy/backends/data/tensorrt-10.3.0.txt

The bindings cannot be imported without TensorRT's own library, but their names stand in the file as text. Kept is what is written like a
name of a Python interface: `lower_case`, `UPPER_CASE` or `CamelCase`.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]{2,47}")
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*|[A-Z][A-Z0-9]*(_[A-Z0-9]+)*|([A-Z]{1,3}[a-z0-9]{2,})+|__version__")


def names_of_wheel(wheel: Path) -> list[str]:
    """Return the names in the Python modules and shared libraries of a wheel, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        contents = [archive.read(name) for name in archive.namelist() if name.endswith((".so", ".py"))]
    words = {word.decode() for content in contents for word in _WORD.findall(content)}
    return sorted(word for word in words if _NAME.fullmatch(word))


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text("\n".join(names_of_wheel(source)) + "\n", "utf-8")
