"""Say what a machine has for building and timing engines, as JSON: python doctor.py [--root DIRECTORY] [--torch]."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.runner.doctor_machine import machine_facts
from deploy.runner.doctor_probes import PROBES, answer_probe, run_probes


def doctor_main(arguments: Sequence[str], source: str) -> int:
    """Print the facts of this machine as JSON, or answer one probe; `source` is the text of this program, for the
    probes' processes.

    The answer has many short lines: one that is too long is cut on its way over ssh.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the files of the system are")
    parser.add_argument("--torch", action="store_true", help="look at PyTorch as well")
    parser.add_argument("--probe", nargs=2, metavar=("NAME", "ANSWER"), help="run one probe in this process")
    options = parser.parse_args(arguments)
    sys.path[:] = [place for place in sys.path if place]  # of the current directory nothing is meant to be imported
    if options.probe:
        return answer_probe(options.probe[0], Path(options.probe[1]), options.root)
    names = [name for name in PROBES if name != "torch" or options.torch]
    probes = run_probes(names, source, options.root)
    facts = {**machine_facts(options.root), "probes": probes}
    sys.stdout.write(json.dumps({"python": list(sys.version_info[:3]), "facts": facts}, indent=1) + "\n")
    return 0
