"""The terminal that tables and progress go to."""

from __future__ import annotations

from rich.console import Console

WIDTH_OF_A_LOG = 120


def terminal(*, standard_output: bool = False) -> Console:
    """Standard error, or output; where that is a file or a pipe, wide enough for the tables."""
    console = Console(stderr=not standard_output)
    return console if console.is_terminal else Console(stderr=not standard_output, width=WIDTH_OF_A_LOG)
