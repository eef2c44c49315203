"""The methods as a table for people and as plain values for scripts."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table

from smpq.methods import METHODS, Method


def table() -> Table:
    """Return one row a method."""
    found = Table(
        Column("method", no_wrap=True),
        Column("what it does", ratio=3),
        Column("needs", width=9),
        Column("cost", ratio=2, overflow="fold"),
        expand=True,
        show_lines=True,
    )
    for name, method in METHODS.items():
        found.add_row(name, f"{method.summary} {what_follows(method)}\n{method.paper}", needs_of(method), method.cost)
    return found


def described() -> dict[str, dict[str, Any]]:
    """Return what every method declares, by name."""
    return {
        name: {
            "summary": method.summary,
            "paper": method.paper,
            "needs": [need.value for need in method.needs],
            "cost": method.cost,
            "decides": method.decides,
            "searched": method.searched,
            "latency": method.latency,
            "finetuned": method.finetuned,
            "epochs": method.epochs,
        }
        for name, method in METHODS.items()
    }


def needs_of(method: Method) -> str:
    """Say what a method needs."""
    return ", ".join(need.value for need in method.needs) or "nothing"


def what_follows(method: Method) -> str:
    """Say what smpq run does with the scores, or that there are none."""
    if method.trains:
        return f"Trains policy and weights together, {method.epochs:g} epochs by default; no latency budget."
    parts = ["The search goes on near its plan" if method.searched else "Its scores decide alone"]
    parts += [] if method.latency else ["no latency budget"]
    parts += ["fine-tuned by default"] if method.finetuned else []
    return f"{'; '.join(parts)}."
