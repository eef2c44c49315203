"""Change genuine files at random places, and read each in a process with a limit on its memory: it is read, or refused
with one message.

Usage: fuzz_files.py [--mutations N]   (of each kind of file)
"""

import argparse
import pickle
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from records import keep
from safetensors.torch import save_file

from calib.tasks.cifar10_resnet20 import ResNet20
from smpq.training.finetune import finetune
from smpq.training.settings import FineTuneSettings
from tests.limited import MEMORY, mutated, read_within_limits
from tests.smpq.tunable import tunable
from tests.warm import Server

SEED = 0
AT_ONCE = 250


def genuine(directory: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield the kind of file, the name that its reader wants, and the content."""
    generator = np.random.default_rng(SEED)
    labels = [int(label) for label in generator.integers(0, 10, 20)]
    record = {
        b"data": generator.integers(0, 256, (20, 3072), dtype=np.uint8),
        b"labels": labels,
        b"filenames": [b"x.png"] * 20,
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield "cifar10", "test_batch", pickle.dumps(record, protocol=protocol)
    path = directory / "weights"
    for new in (True, False):
        torch.save(ResNet20().state_dict(), path, _use_new_zipfile_serialization=new)
        yield "weights", "weights.pt", path.read_bytes()
    save_file(ResNet20().state_dict(), path)
    yield "weights", "weights.safetensors", path.read_bytes()
    given = tunable()
    finetune(given.subject("w4a4", head="w4a16b2"), given.batches, FineTuneSettings(steps=2)).save(path)
    yield "finetuned", "finetuned.safetensors", path.read_bytes()


def fuzzed(reader: str, name: str, content: bytes, count: int, directory: Path, warm: Server) -> dict:
    """Return what became of `count` mutations; an assertion of `read_within_limits` fails on a crash, a traceback or
    too much memory.
    """
    generator, said, started = random.Random(SEED), [], time.monotonic()
    while len(said) < count:
        paths = []
        for index in range(min(AT_ONCE, count - len(said))):
            paths.append(directory / str(index) / name)
            paths[-1].parent.mkdir(exist_ok=True)
            paths[-1].write_bytes(mutated(content, generator))
        said += read_within_limits(reader, *paths, warm=warm)
    accepted = said.count("read")
    return {
        "file": name,
        "bytes": len(content),
        "mutations": count,
        "read": accepted,
        "refused": count - accepted,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text, closing(Server(Path(text))) as warm:
        directory = Path(text)
        rows = [
            fuzzed(reader, name, content, options.mutations, directory, warm)
            for reader, name, content in genuine(directory)
        ]
    command = f"PYTHONPATH=. python benchmarks/fuzz_files.py --mutations {options.mutations}"
    keep("fuzz_files", command, [SEED], rows, memory_bytes=MEMORY, mutations=sum(row["mutations"] for row in rows))


if __name__ == "__main__":
    main()
