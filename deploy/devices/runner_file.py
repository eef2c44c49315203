"""Join what runs on a device into one file, which needs nothing of ours there."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

_PACKAGE = "deploy.runner"
_MODULES = (
    "errors", "cuda_library", "cuda_driver", "nvml", "state", "protocol", "experiment", "cuda_pycuda", "cuda", "gpu", "causes",
    "ort_gpu", "ort_sessions", "ort",
    "blame", "trt_log", "plan_cache", "trt_timing", "trt_build", "trt_layers", "trt_context", "trt", "trt_open", "product_examples",
    "product", "bench", "main",
)  # fmt: skip
_DOCTOR_MODULES = ("doctor_gpus", "doctor_probes", "doctor_machine", "doctor")
"""Not in the runner: what looks at a machine."""
_HEADER = '''"""Build and time the engines of an experiment on this machine: python3 runner.py --help.

Made by smpq from the modules of its package deploy.runner, in one file so that it can be copied. It needs Python 3.10 or later,
numpy, and the runtime that experiment.json names.
"""

from __future__ import annotations
'''
_NUMPY = """try:
    import numpy as np
except ImportError:
    sys.stderr.write("error: Python has no module numpy here: install it, as with pip install numpy\\n")
    raise SystemExit(2) from None
"""
_FOOTER = """if __name__ == "__main__":
    sys.exit(main())
"""


def runner_text() -> str:
    """Return the text of `runner.py`.

    1. All imports come first, each once; those of the joined modules themselves are left out.
    2. A module's docstring becomes a comment over its code.
    3. A name stands for one thing in all modules, since they share a namespace: ValueError when it does not, which is a
       bug in them.
    """
    standard, others, sections = _joined(_MODULES)
    return "\n".join([_HEADER, *standard, "", _NUMPY, *others, *sections, "", _FOOTER])


def source_of(module: str) -> str:
    """Return the text of one module and of all of ours that it imports, to be run without the others."""
    standard, others, sections = _joined(_needed(module))
    return "\n".join(["from __future__ import annotations", *standard, *others, *sections, ""])


def _joined(modules: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the imports of the standard library, those of numpy, and the code of each module."""
    sources = {name: _source(name) for name in modules}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    _check_names(trees)
    imports = _import_lines(trees.values())
    standard, others = ([line for line in imports if (" numpy" in line) == of_numpy] for of_numpy in (False, True))
    return standard, others, [_section(name, sources[name], trees[name]) for name in modules]


def _needed(module: str) -> list[str]:
    """Return a module and all of ours that it imports, each behind those that it imports."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            ours = filter(_is_ours, _imports(ast.parse(_source(name))))
            waiting += [str(node.module).removeprefix(f"{_PACKAGE}.") for node in ours if node.module != "__future__"]
    return [name for name in (*_MODULES, *_DOCTOR_MODULES) if name in found]


def _source(module: str) -> str:
    return (Path(__file__).parent.parent / "runner" / f"{module}.py").read_text(encoding="utf-8")


def _import_lines(trees: Iterable[ast.Module]) -> list[str]:
    """Return the imports of all modules: those of whole modules first, then one line for what is taken of a module."""
    whole: set[str] = set()
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for node in (node for tree in trees for node in _imports(tree) if not _is_ours(node)):
        if isinstance(node, ast.Import):
            whole.add(ast.unparse(node))
        else:
            parts[str(node.module)].update(ast.unparse(alias) for alias in node.names)
    whole.discard("import numpy as np")  # has its own place
    return [
        *sorted(whole),
        *(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(parts.items())),
    ]


def _imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    return (node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))


def _is_ours(node: ast.Import | ast.ImportFrom) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and (node.module == "__future__" or str(node.module).startswith(_PACKAGE))


def _section(name: str, source: str, tree: ast.Module) -> str:
    """Return a module's code without its imports, under its docstring as a comment."""
    lines = source.splitlines()
    dropped = {
        number for node in (tree.body[0], *_imports(tree)) for number in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    code = "\n".join(line for number, line in enumerate(lines, start=1) if number not in dropped).strip()
    about = "\n".join(f"# {line}".rstrip() for line in (ast.get_docstring(tree) or "").splitlines())
    return f"\n# ---- {name} " + "-" * (120 - len(name)) + f"\n{about}\n\n\n{code}\n"


def _check_names(trees: dict[str, ast.Module]) -> None:
    meanings: dict[str, str] = {}
    for module, tree in trees.items():
        for name, meaning in _meanings(module, tree):
            if meanings.setdefault(name, meaning) != meaning:
                raise ValueError(
                    f"{name} is {meanings[name]} and {meaning}: the modules of {_PACKAGE} are joined, so rename one"
                )


def _meanings(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names that a module makes or imports, and what each stands for."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, f"{module}.{node.name}"
        elif isinstance(node, ast.Assign):
            yield from (
                (name.id, f"{module}.{name.id}")
                for t in node.targets
                for name in ast.walk(t)
                if isinstance(name, ast.Name)
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, f"{module}.{node.target.id}"
        elif isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = str(node.module).removeprefix(_PACKAGE).lstrip(".")
            yield from ((alias.asname or alias.name, f"{origin}.{alias.name}") for alias in node.names)
