"""Build and time the engines of an experiment on this machine: python3 runner.pyz --help.

Made by smpq of its package deploy.runner. It needs Python 3.10 or later, numpy, and the runtime that experiment.json
names.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - this file is the only one that an older Python has to understand
    sys.stderr.write(
        "error: {} is Python {}.{}, and 3.10 or later is needed\n".format(sys.executable, *sys.version_info)
    )
    sys.exit(2)
try:
    import numpy as np  # noqa: F401 - whether it is there
except ImportError:
    sys.stderr.write("error: Python has no module numpy here: install it, as with pip install numpy\n")
    sys.exit(2)

from deploy.runner.main import main

sys.exit(main())
