"""Print the classes of TensorRT bindings with the signatures of their methods as JSON: python describe_bindings.py
MODULE.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from types import ModuleType
from typing import Any

_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((self\b.*|)\) -> (.*)$", re.MULTILINE)


def described(module: ModuleType) -> dict[str, dict[str, list[str] | None]]:
    """Return class -> member -> signatures as the bindings document them, None for a value; the class "" is the module
    itself.
    """
    found = {"": {name: _signatures(value) for name, value in vars(module).items()}}
    for name, value in vars(module).items():
        if isinstance(value, type):
            members = [
                member for member in dir(value) if not member.startswith("__") or member in ("__init__", "__members__")
            ]
            found[name] = {member: _signatures(getattr(value, member)) for member in members}
    return found


def _signatures(value: Any) -> list[str] | None:
    if isinstance(value, type) or not callable(value):
        return None
    if inspect.isfunction(value):
        parameters = inspect.signature(value).parameters.values()
        text = ", ".join(p.name if p.default is inspect.Parameter.empty else f"{p.name} = 0" for p in parameters)
        return [f"({text}) -> None"]
    return [f"({parameters}) -> {returned}" for _, parameters, returned in _SIGNATURE.findall(value.__doc__ or "")]


if __name__ == "__main__":
    loaded = importlib.import_module(sys.argv[1])
    sys.stdout.write(json.dumps({"version": loaded.__version__, "classes": described(loaded)}))
