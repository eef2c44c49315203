"""The methods as a table for people and as plain values for scripts."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table

from smpq.methods import METHODS, Method


def table() -> Table:
    """Return one row a method."""
    found = Table(Column("method", no_wrap=True), "what it does", "needs", "cost", "then", "paper", show_lines=True)
    for name, method in METHODS.items():
        found.add_row(name, method.summary, _needs(method), method.cost, _what_follows(method), method.paper)
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
        }
        for name, method in METHODS.items()
    }


def _needs(method: Method) -> str:
    return ", ".join(need.value for need in method.needs) or "nothing"


def _what_follows(method: Method) -> str:
    """Say what smpq run does with the scores."""
    parts = ["search near its plan" if method.searched else "its scores decide alone"]
    parts += [] if method.latency else ["no latency budget"]
    parts += ["fine-tuning"] if method.finetuned else []
    return ", ".join(parts)
