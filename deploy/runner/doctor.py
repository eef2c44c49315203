"""Say what a machine has for building and timing engines, as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.runner.doctor_machine import machine_facts
from deploy.runner.doctor_probes import PROBES, answer_probe, run_probes


def main(arguments: Sequence[str]) -> int:
    """Print the facts of this machine as JSON, or answer one probe.

    The answer has many short lines: one that is too long is cut on its way over ssh.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the files of the system are")
    parser.add_argument("--torch", action="store_true", help="look at PyTorch as well")
    parser.add_argument("--probe", nargs=2, metavar=("NAME", "ANSWER"), help="run one probe in this process")
    options = parser.parse_args(arguments)
    if options.probe:
        return answer_probe(options.probe[0], Path(options.probe[1]), options.root)
    names = [name for name in PROBES if name != "torch" or options.torch]
    probes = run_probes(names, options.root)
    facts = {**machine_facts(options.root), "probes": probes}
    sys.stdout.write(json.dumps({"python": list(sys.version_info[:3]), "facts": facts}, indent=1) + "\n")
    return 0
