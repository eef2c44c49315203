"""Read files in a process of its own that may take no more than a given amount of memory: what a file asks for
shows.
"""

import json
import os
import random
import subprocess
import sys

from tests.conftest import ROOT

MEMORY = 1024 * 2**20
"""Bytes on top of what the process takes once everything is imported."""
READERS = {
    "cifar10": "from calib.tasks.cifar10_files import read_cifar10\nread = lambda path: read_cifar10(path.parent, train=False)",
    "weights": "from calib.files.weights import load_weights\nread = load_weights",
    "finetuned": "from smpq.training.finetuned import FineTunedWeights\nread = FineTunedWeights.load",
}
_CODE = """
import json, resource, sys
from pathlib import Path
from calib.errors import UserError
{reader}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {memory}, used + {memory}))
for path in map(Path, sys.argv[1:]):
    try:
        read(path)
        print(json.dumps([path.name, "read"]))
    except UserError as error:
        print(json.dumps([path.name, str(error)]))
"""


def read_within_limits(reader, *paths, timeout=300):
    """Return what reading each file said, "read" or the message of the UserError; an assertion fails on anything
    else.
    """
    code = _CODE.format(reader=READERS[reader], memory=MEMORY)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [json.loads(line)[1] for line in done.stdout.splitlines()]
    assert len(said) == len(paths)
    assert not any("MemoryError" in message for message in said)
    assert all("\n" not in message and len(message) < 1000 for message in said)
    return said


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Replace, take away, repeat or insert bytes in a few places: mostly near the start, where the structure is."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(min(len(changed), generator.choice([64, 400, len(changed)])) or 1)
        kind = generator.randrange(4)
        length = generator.choice([1, 1, 2, 4, 8])
        if kind == 0:
            changed[place : place + length] = generator.randbytes(length)
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = changed[place : place + length]
        else:
            changed[place:place] = generator.randbytes(length)
    return bytes(changed)
