"""Tell the person at the terminal what is going on; silent when nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

from deploy.terminal.patience import Patience
from deploy.terminal.printable import printable

_LONGEST = 4000


class Progress:
    """Steps and bars on standard error; also keeps how long each took, in seconds."""

    def __init__(self, console: Console | None = None, patience: Patience | None = None) -> None:
        """Write to `console`, or to nothing. `patience` is that of whoever waits; without it there is no end to it."""
        self._console = console or Console(quiet=True)
        self.patience = patience or Patience()
        self.seconds: dict[str, float] = {}

    def enough(self) -> bool:
        """Whether a search should end with the best that it has."""
        return self.patience.over()

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(printable(text, _LONGEST), highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line that should not be missed."""
        self._console.print(
            f"warning: {printable(text, _LONGEST)}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show a spinner while something of unknown length runs."""
        with self._shown(name, None, SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()):
            yield

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar of `total` steps; the function that is handed out advances it by one."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with self._shown(name, total, TextColumn("{task.description}"), *columns) as advance:
            yield advance

    @contextmanager
    def _shown(self, name: str, total: int | None, *columns: ProgressColumn) -> Iterator[Callable[[], None]]:
        start, hidden = time.monotonic(), not self._console.is_terminal
        with RichProgress(*columns, console=self._console, transient=True, disable=hidden) as bar:
            task = bar.add_task(name, total=total)
            yield lambda: bar.advance(task)
        elapsed = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        if elapsed > 1:
            self.say(f"{name}: {elapsed:.1f} s")
