"""Examine a machine: what is there, what works, and the commands that mend what does not."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.devices.address import check_address, is_here
from deploy.doctor.ask import ask_here, ask_over_ssh
from deploy.doctor.facts import Answer
from deploy.doctor.here import Requirement, here_findings, requirements
from deploy.doctor.of_gpu import gpu_findings
from deploy.doctor.of_machine import machine_findings, python_finding
from deploy.doctor.of_onnxruntime import onnxruntime_findings
from deploy.doctor.of_tensorrt import tensorrt_findings
from deploy.doctor.patient import Patient
from deploy.doctor.record import DoctorRecord, Finding, Works
from deploy.doctor.works import works_of
from deploy.targets.target import Target, target_from_name


def examine(device: str = "", target_name: str | None = None) -> DoctorRecord:
    """Ask this machine, or the one at an address such as ssh://user@host, and judge what it answers.

    With the name of a target it is judged by what that target needs. UserError when the machine cannot be asked, or the
    target is unknown.
    """
    target = target_from_name(target_name) if target_name is not None else None
    if is_here(device):
        return judged("", ask_here("--torch"), target, requirements())
    check_address(device)
    return judged(device, ask_over_ssh(device), target, requirements())


def judged(address: str, answer: Answer, target: Target | None, needed: list[Requirement]) -> DoctorRecord:
    """Return what follows from the answer of a machine."""
    facts = answer.facts
    patient = Patient(address, facts, target) if facts is not None else None
    findings = [python_finding(answer.python, address)]
    if patient is not None:
        findings += [
            *machine_findings(patient), *gpu_findings(patient), *tensorrt_findings(patient),
            *onnxruntime_findings(patient),
        ]  # fmt: skip
    torch = facts.probes.torch if facts is not None else None
    findings += here_findings(needed, torch, over_ssh=bool(address))
    works = works_of(patient, answer.python, _why_no_search(needed, findings), target)
    mends = _commands(finding for finding in findings if finding.state == "problem")
    choices = _commands(finding for finding in findings if finding.state == "note")
    return DoctorRecord(
        device=address,
        target=target.name if target is not None else None,
        met=_met(works, target),
        findings=tuple(findings),
        works=works,
        mends=mends,
        choices=tuple(command for command in choices if command not in mends),
        facts=facts,
    )


def _why_no_search(needed: list[Requirement], findings: Iterable[Finding]) -> str | None:
    """Say why this machine cannot search: whatever the device is, the search is here."""
    wrong = [each.name for each in needed if not each.met]
    if any(finding.subject == "PyTorch" and finding.state == "problem" for finding in findings):
        wrong.append("torch")
    return f"{', '.join(dict.fromkeys(wrong))} missing or too old here" if wrong else None


def _met(works: tuple[Works, ...], target: Target | None) -> bool:
    if target is None:
        return any(row.times for row in works)
    if not target.timed:
        return all(row.search is None for row in works)
    return all(row.search is None and row.times for row in works)


def _commands(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(command for finding in findings for command in finding.mends))
