"""Check the capability tables: one layer of every kind in every format that a rule names, built, against what the table
says.

Usage: capability.py [TARGET ...]     [default: ort-cpu, and tensorrt-rtx for each compute capability it knows]

A target with a compute capability is written `tensorrt-rtx:sm86`. Needs no GPU. Exits with 1 when a table is wrong
somewhere.
"""

import sys
import time

from probe import cases, disagreement, probe, stated
from records import keep

from deploy.targets.target import compute_capabilities_of, target_from_name

REASON = 100
"""Characters of a runtime's reason that are kept."""


def usual() -> list[str]:
    """Return the targets that can be checked without a GPU."""
    return ["ort-cpu", *(f"tensorrt-rtx:{one}" for one in compute_capabilities_of(target_from_name("tensorrt-rtx")))]


def checked(name: str) -> list[dict[str, str]]:
    """Try every case of one target."""
    family, _, compute_capability = name.partition(":")
    target = target_from_name(family, [compute_capability] if compute_capability else [])
    rows = []
    for operator, format_ in cases(target):
        answer, found = stated(target, operator, format_), probe(target, operator, format_)
        rows.append(
            {
                "target": name, "operator": operator, "format": str(format_), "stated": answer.status,
                "found": found.status, "what": found.what[:REASON], "stored_as": str(found.stored_as),
                "disagreement": disagreement(answer, format_, found),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    names = sys.argv[1:] or usual()
    rows, seconds = [], {}
    for name in names:
        start = time.process_time()
        rows += checked(name)
        seconds[name] = round(time.process_time() - start, 1)
        print(f"{name}: {seconds[name]} s of CPU time", file=sys.stderr, flush=True)
    wrong = [row for row in rows if row["disagreement"]]
    counts = {name: sum(row["target"] == name for row in rows) for name in names}
    keep(
        "capability", " ".join(["python benchmarks/capability.py", *sys.argv[1:]]), [0], rows,
        cases=counts, cpu_seconds=seconds, disagreements=len(wrong),
    )  # fmt: skip
    for row in wrong:
        print(f"{row['target']} {row['operator']} in {row['format']}: {row['disagreement']}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
