"""Readings of how busy a machine is, row by row. Light: every host's sampler imports it."""

from __future__ import annotations

from collections.abc import Sequence

COLUMNS = (
    "cpu_percent",
    "memory_percent",
    "received_mbit_per_s",
    "sent_mbit_per_s",
    "gpu_percent",
    "gpu_memory_percent",
)
Row = tuple[float | None, ...]
"""time.time() and then COLUMNS, of the second before; CPU and GPU percentages are of one core or GPU."""

Answer = tuple[int, int, list[Row]]
"""Readings to a row, the number of the first row that is told, and the rows from there on."""


class Timeline:
    """Rows of equal weight, at most `most`: a long one has means of 2, 4, 8 … readings in place of each."""

    def __init__(self, most: int):
        assert most > 1 and most % 2 == 0, "rows are halved in pairs"
        self.rows: list[Row] = []
        self.readings_a_row = 1
        self._most = most
        self._unfinished: list[Row] = []

    def add(self, row: Row) -> None:
        self._unfinished.append(row)
        if len(self._unfinished) < self.readings_a_row:
            return
        self.rows.append(mean_row(self._unfinished))
        self._unfinished = []
        if len(self.rows) > self._most - 1:
            self.rows, self.readings_a_row = halved(self.rows), 2 * self.readings_a_row

    def news(self, readings_a_row: int, known: int) -> Answer:
        """For a copy that has `known` rows of so many readings; all rows when these have become other ones."""
        first = known if readings_a_row == self.readings_a_row else 0
        return self.readings_a_row, first, self.rows[first:]

    def take(self, answer: Answer) -> None:
        """Bring a copy up to date with what `news` of the original said."""
        self.readings_a_row, first, rows = answer
        self.rows[first:] = rows


def mean_row(rows: Sequence[Row]) -> Row:
    """Of rows that follow each other, at the time of the last; None where one of them has no figure."""
    columns = list(zip(*rows, strict=True))[1:]
    return rows[-1][0], *(None if None in column else sum(column) / len(column) for column in columns)


def halved(rows: Sequence[Row]) -> list[Row]:
    """The means of pairs; an odd last row stays as it is."""
    return [mean_row(rows[first : first + 2]) for first in range(0, len(rows), 2)]
