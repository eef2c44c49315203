"""Why a mutation may be accepted although smpq then does something else: by file and field."""

from __future__ import annotations

from tests.run_files.mutations import Mutation


def reason(mutation: Mutation) -> str | None:
    """Return the reason, None where there is none."""
    return None
