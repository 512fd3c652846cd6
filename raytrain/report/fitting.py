"""Tables that fit the terminal: whole columns are left out, and named, before a cell is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

GAP = 2  # between two columns


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        leave: when it is left out: 0 for never, else the highest first, and of equals the last first.
        narrow: a narrower form of a cell of several lines, for a column that is never left out.
    """

    name: str
    leave: int = 0
    right: bool = True
    narrow: Callable[[str], str] | None = None


def show_fitted(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], console: Console, remedy: str
) -> None:
    """Print a table, and below it which columns there was no room for; `remedy` says how to see them."""
    table, left_out = fitted(title, columns, rows, console.width)
    console.print(table)
    if left_out:
        line = f"left out at a width of {console.width}: {', '.join(left_out)}; {remedy}"
        console.print(line, markup=False, highlight=False)


def fitted(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> tuple[Table, tuple[str, ...]]:
    """The table at some width, and the names of the columns that it has no room for.

    A cell that is wider than all of the width is broken, never cut.
    """
    cells = [[column.name, *(row[number] for row in rows)] for number, column in enumerate(columns)]
    kept = list(range(len(columns)))
    while _width([cells[n] for n in kept]) > width and any(columns[n].leave for n in kept):
        kept.remove(max(kept, key=lambda n: (columns[n].leave, n)))
    if _width([cells[n] for n in kept]) > width:
        cells = [
            [column.narrow(cell) for cell in own] if column.narrow else own
            for column, own in zip(columns, cells, strict=True)
        ]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for n in kept:
        table.add_column(columns[n].name, justify="right" if columns[n].right else "left", overflow="fold")
    for number in range(1, len(rows) + 1):
        table.add_row(*(cells[n][number] for n in kept))
    return table, tuple(column.name for n, column in enumerate(columns) if n not in kept)


def widest(cells: Sequence[str]) -> int:
    """Of all lines of some cells."""
    return max(cell_len(line) for cell in cells for line in cell.split("\n"))


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(widest(cells) for cells in columns) + GAP * (len(columns) - 1)


def number(value: float, least: int = 2) -> str:
    """With at least three digits that count, and `least` decimals: 1,234.00, 1.41, 0.0123."""
    digits = 0 if value <= 0 else 2 - math.floor(math.log10(value))
    return f"{value:,.{max(digits, least)}f}"
