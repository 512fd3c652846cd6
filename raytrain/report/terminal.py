"""The terminal that tables and progress go to."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

WIDTH_OF_A_LOG = 120


def terminal(*, standard_output: bool = False) -> Console:
    """Standard error, or output; where that is a file or a pipe, wide enough for the tables."""
    console = Console(stderr=not standard_output)
    return console if console.is_terminal else Console(stderr=not standard_output, width=WIDTH_OF_A_LOG)


class LiveDisplay:
    """What is shown of something that goes on: in a terminal at one place, elsewhere in lines."""

    def __init__(self, console: Console):
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
