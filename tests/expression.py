"""Print what an expression comes to, with the names of a module: `python -m tests.expression MODULE EXPRESSION`."""

import importlib
import sys

if __name__ == "__main__":
    print(eval(sys.argv[2], vars(importlib.import_module(sys.argv[1]))))
