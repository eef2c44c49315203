"""Changed messages of devices: what is refused, what is equal in effect, and what else is accepted and why.

Usage: device_messages.py

Every value of every message is replaced, deleted and nested, fields are added, lists turned round, and the text is
damaged; see tests/deploy/devices/mutations.py. Memory is limited to 4 GB, and the slowest message is recorded. Any
other exception ends the benchmark.
"""

import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from records import keep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.deploy.devices.mutations import messages, mutations, outcome

MEMORY_BYTES = 4 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for message in messages(Path(directory)):
            good, outcomes, slowest = message.read(message.content), Counter(), 0.0
            for mutation in mutations(message.content):
                start = time.monotonic()
                outcomes[outcome(message, mutation, good)] += 1
                slowest = max(slowest, time.monotonic() - start)
            rows.append(
                {"message": message.name, "mutations": outcomes.total(), "slowest_s": round(slowest, 3), **outcomes}
            )
            print(rows[-1], file=sys.stderr, flush=True)
    keep(
        "device_messages", "python benchmarks/device_messages.py", [], rows,
        memory_limit_bytes=MEMORY_BYTES, mutations=sum(row["mutations"] for row in rows),
    )  # fmt: skip


if __name__ == "__main__":
    main()
