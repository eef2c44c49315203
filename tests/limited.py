"""Read files in a process of its own that may take no more than a given amount of memory: what a file asks for
shows.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import warnings
from pathlib import Path

from calib.errors import UserError
from calib.files.weights import load_weights
from calib.tasks.cifar10_files import read_cifar10
from smpq.training.finetuned import FineTunedWeights
from tests.warm import Server

MEMORY = 1024 * 2**20
"""Bytes on top of what the process takes once everything is imported."""
READERS = {
    "cifar10": lambda path: read_cifar10(path.parent, train=False),
    "weights": load_weights,
    "finetuned": FineTunedWeights.load,
}


def read_within_limits(reader, *paths, warm: Server):
    """Return what reading each file said, "read" or the message of the UserError; an assertion fails on anything
    else.
    """
    with warm.run("tests.limited", reader, *paths) as process:
        output, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0, errors[-2000:]
    said = [json.loads(line)[1] for line in output.splitlines()]
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


def _main(reader: str, *paths: str) -> None:
    warnings.simplefilter("error")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for path in map(Path, paths):
        try:
            READERS[reader](path)
            print(json.dumps([path.name, "read"]))
        except UserError as error:
            print(json.dumps([path.name, str(error)]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
