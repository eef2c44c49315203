"""Which objects of TensorRT a source uses, and whether what it reads and calls is there with these arguments.

Types follow from the bindings' own signatures: of `builder = module.Builder(logger)` it is Builder, of
`network = builder.create_network(flags)` what the signature of `create_network` returns.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

Bindings = Mapping[str, Mapping[str, "list[str] | None"]]
"""Class -> member -> signatures, None for a value; "" is the module."""

PARAMETERS = {
    "module": "", "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig",
    "engine": "ICudaEngine", "context": "IExecutionContext", "runtime": "Runtime",
}  # fmt: skip
"""What arguments and fields of these names hold wherever their type is not told otherwise."""
_PYTHON = {
    name for kind in (str, bytes, dict, list, tuple, set, Path, io.TextIOWrapper, io.BytesIO) for name in dir(kind)
}
_LONGEST_STARRED = 6


def problems(file: Path, bindings: Bindings, elsewhere: set[str]) -> list[str]:
    """Return what of a source these bindings do not have, or not with such arguments; names in `elsewhere` may be
    missing.

    So may names that the source asks for first, with `hasattr` or `getattr`.
    """
    tree = _parsed(file)
    ours = {
        node.name
        for other in file.parent.glob("*.py")
        for node in ast.walk(_parsed(other))
        if isinstance(node, ast.FunctionDef)
    }
    asked = {node.args[1].value for node in ast.walk(tree) if _asks(node)}
    found = [text for base in _overridden(tree) for text in _wrong_override(*base, bindings)]
    for function in [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]:
        types = _Types(function, bindings)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr not in elsewhere | asked:
                found += [f"{file.name}:{node.lineno}: {text}" for text in types.wrong(node, ours)]
    return found


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


class _Types:
    """Types of the names in a function or class."""

    def __init__(self, scope: ast.AST, bindings: Bindings) -> None:
        self._bindings = bindings
        self._called = {id(node.func): node for node in ast.walk(scope) if isinstance(node, ast.Call)}
        self._of_ours = {target for target, value in _assigned(scope) if _is_our_class(value)}
        self._names: dict[str, str] = {}
        for _ in range(3):  # a type may follow from one that is found below
            for target, value in _assigned(scope):
                found = self.of(value)
                if found is not None:
                    self._names[target] = found

    def of(self, node: ast.AST) -> str | None:
        """Return the class of an expression, or of the elements of a list; None when it is no object of TensorRT."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, None if node.id in self._of_ours else PARAMETERS.get(node.id))
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return self.of(node.elt)
        if isinstance(node, ast.BoolOp):
            return self.of(node.values[0])
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return PARAMETERS.get(node.attr.lstrip("_"))
            return node.attr if self.of(node.value) == "" and node.attr in self._bindings else None
        if isinstance(node, ast.Call):
            return self._returned(node)
        return None

    def wrong(self, node: ast.Attribute, ours: set[str]) -> Iterator[str]:
        """Say what is wrong with an attribute, or with its call."""
        owner, call = self.of(node.value), self._called.get(id(node))
        if owner is None:
            methods = {
                name for members in self._bindings.values() for name, signatures in members.items() if signatures
            }
            if call is not None and node.attr in methods - _PYTHON - ours:
                yield f"{ast.unparse(node)}: of what class is it? Name it as in PARAMETERS"
            return
        members = self._bindings[owner]
        if node.attr not in members:
            yield f"{owner or 'the module'} has no {node.attr}"
        elif call is not None:
            constructed = owner == "" and node.attr in self._bindings
            signatures = self._bindings[node.attr]["__init__"] if constructed else members[node.attr]
            bound = constructed or (owner != "" and not _is_class(node.value))
            if not any(_takes(text, call, bound=bound) for text in signatures or ()):
                yield f"{ast.unparse(call)}: {owner}.{node.attr} is {signatures}"

    def _returned(self, call: ast.Call) -> str | None:
        if not isinstance(call.func, ast.Attribute):
            return None
        owner = self.of(call.func.value)
        if owner == "" and call.func.attr in self._bindings:
            return call.func.attr
        signatures = self._bindings[owner].get(call.func.attr) if owner else None
        returned = signatures[0].rpartition(" -> ")[2] if signatures else ""
        # an interface of C++ has an I that its class in Python may lack
        names = [returned.rpartition(".")[2], returned.rpartition("::")[2].removeprefix("I")]
        return next((name for name in names if name and name in self._bindings), None)


def _asks(node: ast.AST) -> TypeGuard[ast.Call]:
    asking = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
    return asking and isinstance(node.args[1], ast.Constant)


def _is_class(node: ast.AST) -> bool:
    """Whether a receiver is a class of the module, as in module.ILogger.__init__(self)."""
    return isinstance(node, ast.Attribute) and node.attr[:1].isupper()


def _is_our_class(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id[:1].isupper()


def _assigned(scope: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names with the expressions that they stand for, or whose elements they are."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, (ast.comprehension, ast.For)) and isinstance(node.target, ast.Name):
            yield node.target.id, node.iter


def _overridden(tree: ast.AST) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Methods of classes that inherit from one of the module's, with the name of that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Attribute):
                    yield from ((base.attr, item) for item in node.body if isinstance(item, ast.FunctionDef))


def _wrong_override(base: str, method: ast.FunctionDef, bindings: Bindings) -> Iterator[str]:
    if method.name.startswith("__"):
        return
    signatures = bindings.get(base, {}).get(method.name)
    names = [argument.arg for argument in method.args.args]
    if not signatures or not any([name for name, _ in _parameters(text)] == names for text in signatures):
        yield f"{base}.{method.name}({', '.join(names)}) overrides {signatures}"


def _takes(signature: str, call: ast.Call, *, bound: bool) -> bool:
    """Whether a call fits a signature; `bound` means that self is not among the arguments."""
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    parameters = [
        inspect.Parameter(name, kind, default=0 if optional else empty) for name, optional in _parameters(signature)
    ]
    known = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    for starred in range(_LONGEST_STARRED if len(known) < len(call.args) else 1):
        arguments = [0] * (bound + len(known) + starred)
        try:
            inspect.Signature(parameters).bind(*arguments, **{str(keyword.arg): 0 for keyword in call.keywords})
        except TypeError:
            continue
        return True
    return False


def _parameters(signature: str) -> list[tuple[str, bool]]:
    """Return the parameters of "(self: X, a: int = 0) -> Y": their names, and whether they have a default."""
    inside, depth, parts = signature[1 : signature.rindex(") -> ")], 0, [""]
    for letter in inside:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [(part.split(":")[0].split("=")[0].strip(), "=" in part) for part in parts if part.strip()]
