"""What runs came to: their final figures, their epochs, and the samples that they left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from raytrain.config.file import section_of
from raytrain.config.training import CheckpointPolicy
from raytrain.cost.compare import Column, Comparison
from raytrain.record.gaps import gap_share
from raytrain.record.schema import RunRecord
from raytrain.report.costs import share, usd

NOT_METRICS = {"epoch", "seconds", "steps", "samples_per_s"}  # what an epoch's entry has besides
MAX_EPOCHS = 200  # rows of the table
UNUSUAL = {
    "dropped": "samples dropped at an epoch's end",
    "repeated": "samples repeated at an epoch's end",
    "carried": "samples carried into the next epoch",
    "filtered": "samples that a stage did not want",
    "stand_ins": "times a rank had no sample to step with",
    "skipped_steps": "updates left out",
    "skipped_samples": "samples of those updates",
}


@dataclass(frozen=True)
class PageTable:
    """Attributes: `text`: numbers of the columns that hold text, the first apart; `folded`: shown when asked for."""

    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    text: tuple[int, ...] = ()
    folded: bool = False


def metrics_of(records: list[RunRecord]) -> list[str]:
    """Names of what was logged, the loss first, then in the order of the alphabet."""
    names = {
        name for record in records for entry in record.epochs for name, value in entry.items() if value is not None
    }
    return sorted(names - NOT_METRICS, key=lambda name: (name != "loss", name))


def spoken(metric: str) -> str:
    return metric.replace("_", " ")


def figure(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2%}" if is_share(metric, value) else f"{value:.4g}"


def is_share(metric: str, value: float) -> bool:
    """Whether it is of a kind that is told in percent."""
    return metric.endswith("accuracy") and 0 <= value <= 1


def results(records: list[RunRecord], names: list[str], comparison: Comparison) -> PageTable:
    """Final figures, a column a run, only the rows that some run has a figure for."""
    rows = [["status", *(record.status for record in records)]]
    rows.append(["epochs", *(str(len(record.epochs) or "-") for record in records)])
    for metric in metrics_of(records):
        rows.append([spoken(metric), *(_final(record, metric) for record in records)])
    rows.append(["best", *(_best(record) for record in records)])
    rows += [
        ["samples/s", *(f"{each.totals.samples_per_s:,.1f}" if each.totals.samples else "-" for each in records)],
        ["waiting for data", *(share(each.totals.wait_share if each.totals.samples else None) for each in records)],
        ["GPU idle between kernels", *(share(gap_share(record.ranks)) for record in records)],
        ["first step after", *(_seconds(record.startup.first_step_s) for record in records)],
        ["took", *(_seconds(record.totals.wall_s) for record in records)],
        ["attempts", *(str(record.totals.attempts) if record.totals.attempts > 1 else "-" for record in records)],
        ["limited by", *(each.totals.limited_by if each.totals.samples else "-" for each in records)],
    ]
    if len(comparison.columns) == 1:  # nothing to hold it against: a comparison would be an empty one
        rows += _money(comparison.columns[0])
    rows += [["samples left out", *(_left_out(record) for record in records)]]
    for name, what in UNUSUAL.items():
        rows.append([what, *(f"{getattr(record.unusual, name) or '-'}" for record in records)])
    return PageTable(["", *names], [row for row in rows if set(row[1:]) != {"-"}])


def _final(record: RunRecord, metric: str) -> str:
    return figure(metric, record.epochs[-1].get(metric)) if record.epochs else "-"


def _best(record: RunRecord) -> str:
    """Of the metric whose best checkpoint is kept."""
    given = record.job["training"].get("checkpoint", {})
    policy = section_of(CheckpointPolicy, given, f"training.checkpoint of the record of {record.name}")
    scored = [(score, entry) for entry in record.epochs if (score := policy.score(entry)) is not None]
    if not scored:
        return "-"
    _, entry = max(scored, key=lambda each: each[0])
    return f"{spoken(policy.best)} {figure(policy.best, entry[policy.best])}\nin epoch {entry['epoch']:.0f}"


def _money(column: Column) -> list[list[str]]:
    return [
        ["price per hour", usd(column.usd_per_hour, 3)],
        ["per million samples", usd(column.usd_per_million_samples, 2)],
        ["per epoch", usd(column.usd_per_epoch, 4)],
    ]


def _left_out(record: RunRecord) -> str:
    return "\n".join(f"{count:,} of {total:,} {split}" for count, total, split in record.left_out) or "-"


def left_out(records: list[RunRecord], names: list[str]) -> PageTable:
    """Every sample that the records name, with the reason."""
    rows = [[name, text] for name, record in zip(names, records, strict=True) for text in record.corrupt.listed]
    num_left_out = sum(record.corrupt.train + record.corrupt.validation for record in records)
    notes = [f"{num_left_out:,} were left out; a record names the first 100"] if num_left_out > len(rows) else []
    return PageTable(["run", "sample and reason"], rows, notes, text=(1,), folded=len(rows) > 10)


def epochs(records: list[RunRecord], names: list[str]) -> PageTable:
    """What the curves show, as numbers."""
    metrics = metrics_of(records)
    every = -(-sum(len(record.epochs) for record in records) // MAX_EPOCHS) or 1
    rows = []
    for name, record in zip(names, records, strict=True):
        for number, entry in enumerate(record.epochs):
            if number % every == 0 or entry is record.epochs[-1]:
                logged = [figure(metric, entry.get(metric)) for metric in metrics]
                took = [_seconds(entry.get("seconds")), f"{entry.get('samples_per_s') or 0:,.1f}"]
                rows.append([name, f"{entry['epoch']:.0f}", *logged, *took])
    head = ["run", "epoch", *map(spoken, metrics), "took", "samples/s"]
    notes = [f"every {every}th epoch, and the last"] if every > 1 else []
    return PageTable(head, rows, notes, folded=len(rows) > 10)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} s"
