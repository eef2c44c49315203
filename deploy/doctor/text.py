"""The answer of `smpq doctor` as lines for a terminal."""

from __future__ import annotations

import shlex
from itertools import groupby

from deploy.doctor.record import DoctorRecord, Works
from deploy.terminal.printable import printable

_LONGEST = 1000


def doctor_lines(record: DoctorRecord) -> list[str]:
    """Return what is there, what works, and what to do, in this order."""
    where = record.device or "this machine"
    wanted = f", for {record.target}" if record.target is not None else ""
    lines = [f"what is there ({where}{wanted})"]
    for subject, findings in groupby(record.findings, key=lambda finding: finding.subject):
        for index, finding in enumerate(findings):
            name = subject if index == 0 else ""
            lines.append(f"  {name:<13} {finding.state:<8} {printable(finding.text, _LONGEST)}")
    lines += ["", f"{'what works':<15} {'search':<8}{'build':<7}{'measure':<8}".rstrip()]
    lines += [_works_line(row) for row in record.works]
    lines += [""]
    if record.mends:
        lines += [
            f"to mend{' on the device' if record.device else ''}:",
            *(f"  {printable(command, _LONGEST)}" for command in record.mends),
        ]
    if record.choices:
        lines += ["only if you want it:", *(f"  {printable(command, _LONGEST)}" for command in record.choices)]
    lines.append(_verdict(record))
    return lines


def _works_line(row: Works) -> str:
    words = ["no" if reason else "yes" for reason in (row.search, row.build, row.measure)]
    why = "; ".join(dict.fromkeys(reason for reason in (row.search, row.build, row.measure) if reason))
    return f"  {row.family:<13} {words[0]:<8}{words[1]:<7}{words[2]:<8} {printable(why, _LONGEST)}".rstrip()


def _verdict(record: DoctorRecord) -> str:
    if record.met:
        what = (
            f"what {record.target} needs is there"
            if record.target is not None
            else "engines of some target can be built and timed"
        )
        return f"ready: {what}"
    what = (
        f"what {record.target} needs is not there"
        if record.target is not None
        else "engines of no target can be built and timed"
    )
    device = f" --device {shlex.quote(record.device)}" if record.device else ""
    target = f" --target {record.target}" if record.target is not None else ""
    return f"not ready: {what}. After mending, ask again: smpq doctor{device}{target}"
