"""What a person reads at the end of a run."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from raytrain.record.schema import RunRecord, Utilization, of_device_stages
from raytrain.report.fitting import Column, show_fitted
from raytrain.run.verdict import against_gaps, busy_machine

REMEDY = "the record has them"


def print_summary(record: RunRecord, console: Console) -> None:
    """One table per question: who waited for whom, and what each stage cost."""
    _ranks(record, console)
    _stages(record, console)
    if any(rank.device_stage_s for rank in record.ranks):
        _device_stages(record, console)
    if len(record.hosts) > 1:
        _hosts(record, console)
    if any(load.cpu_percent for load in record.loads):
        _loads(record, console)
    for line in _facts(record):
        console.print(Text(line))


def _ranks(record: RunRecord, console: Console) -> None:
    with_gaps = any(rank.gap_s is not None for rank in record.ranks)
    columns = [
        Column("rank"),
        Column("device", 3, right=False),
        Column("samples"),
        Column("wait"),
        Column("transfer"),
        *([Column("gaps")] if with_gaps else []),
        Column("compute"),
        Column("evaluate", 2),
        Column("checkpoint", 1),
    ]
    rows = []
    for rank in record.ranks:
        total = max(rank.train_s, 1e-9)
        parts = (rank.wait_s, rank.transfer_s, *([rank.gap_s] if with_gaps else []), rank.compute_s)
        shares = ("-" if s is None else f"{s:.2f} ({s / total:.0%})" for s in parts)
        further = (f"{rank.evaluate_s:.2f}", f"{rank.checkpoint_s:.2f}")
        rows.append([str(rank.rank), rank.device, f"{rank.num_samples:,}", *shares, *further])
    show_fitted("Who waited for whom (seconds of training time)", columns, rows, console, REMEDY)


def _stages(record: RunRecord, console: Console) -> None:
    columns = [
        Column("stage", right=False),
        Column("samples", 4),
        Column("CPU ms a sample"),
        Column("wall ms a sample", 1),
        Column("CPU seconds"),
        Column("wall seconds", 2),
        Column("batch p90 wall ms", 3),
        Column("p99", 3),
    ]
    rows = [
        [
            stage.name,
            f"{stage.num_samples:,}",
            f"{stage.cpu_s_per_sample * 1e3:.3f}",
            f"{stage.wall_s_per_sample * 1e3:.3f}",
            f"{stage.cpu_s:.2f}",
            f"{stage.wall_s:.2f}",
            f"{stage.batch_wall_p90_s * 1e3:.1f}",
            f"{stage.batch_wall_p99_s * 1e3:.1f}",
        ]
        for stage in record.stages
    ]
    show_fitted("What the CPU stages cost", columns, rows, console, REMEDY)


def _device_stages(record: RunRecord, console: Console) -> None:
    columns = [Column("stage", right=False), Column("samples"), Column("ms a sample"), Column("seconds")]
    rows = []
    for name, (samples, all_s) in of_device_stages(record.ranks).items():
        rows.append([name, f"{samples:,}", f"{all_s / max(samples, 1) * 1e3:.3f}", f"{all_s:.2f}"])
    show_fitted("What the stages on the device took", columns, rows, console, REMEDY)


def _hosts(record: RunRecord, console: Console) -> None:
    emulated = any(host.emulated for host in record.hosts)
    title = "Where samples were prepared" + (" (emulated nodes)" if emulated else "")
    columns = [
        Column("host", right=False),
        Column("group", 1, right=False),
        Column("CPUs", 2),
        Column("GPUs", 2),
        Column("samples prepared"),
    ]
    rows = [
        [
            f"{host.name} (head)" if host.is_head else host.name,
            host.group,
            f"{host.cpus:g}",
            f"{host.gpus:g}",
            f"{host.samples_prepared:,}",
        ]
        for host in record.hosts
    ]
    show_fitted(title, columns, rows, console, REMEDY)


def _loads(record: RunRecord, console: Console) -> None:
    columns = [
        Column("host", right=False),
        Column("cores busy"),
        Column("of"),
        Column("memory", 2),
        Column("GPUs busy"),
        Column("Mbit/s in", 1),
        Column("Mbit/s out", 1),
    ]
    cpus = {host.name: host.cpus for host in record.hosts if len(record.hosts) > 1}
    rows = [
        [
            load.host,
            _mean(load.cpu_percent, 0.01, ".2f"),
            f"{cpus.get(load.host, record.hardware.cpu_cores):g}",
            _mean(load.memory_percent, 1, ".0f", "%"),
            _mean(load.gpu_percent, 0.01, ".2f"),
            _mean(load.received_mbit_per_s, 1, ",.1f"),
            _mean(load.sent_mbit_per_s, 1, ",.1f"),
        ]
        for load in record.loads
    ]
    show_fitted("How busy the hosts were while training: mean (highest)", columns, rows, console, REMEDY)


def _mean(busy: Utilization | None, scale: float, form: str, unit: str = "") -> str:
    return "-" if busy is None else f"{busy.mean * scale:{form}}{unit} ({busy.max * scale:{form}}{unit})"


def _facts(record: RunRecord) -> list[str]:
    totals, lines = record.totals, []
    lines.append(f"bottleneck: {totals.bottleneck}")
    if (helps := against_gaps(record.ranks)) is not None:
        lines.append(helps)
    lines.append(
        f"{totals.samples:,} samples at {totals.samples_per_s:,.1f} a second, {totals.wait_share:.1%} of the time "
        f"waiting for data; first step after {_seconds(record.startup.first_step_s)}, {totals.wall_s:.1f} s in all"
    )
    if (warning := busy_machine(record.stages)) is not None:
        lines.append(warning)
    lines += [*_left_out(record), *_decoded(record)]
    if record.epochs and record.epochs[-1].get("validation_accuracy") is not None:
        last = record.epochs[-1]
        lines.append(f"validation accuracy {last['validation_accuracy']:.2%} after epoch {last['epoch']:.0f}")
    return lines


def _left_out(record: RunRecord) -> list[str]:
    """A line for what could not be prepared, and one for what went another way than usual; none where all is well."""
    lines, unusual = [], record.unusual
    parts = [f"{count:,} of {total:,} {name} samples ({count / total:.2%})" for count, total, name in record.left_out]
    if parts:
        lines.append(f"left out, since they could not be prepared: {' and '.join(parts)}; the record names them")
    said = [
        (unusual.dropped, "samples dropped (data.tail: drop_last)"),
        (unusual.repeated, "samples repeated (data.tail: pad)"),
        (unusual.carried, "samples carried into the next epoch (data.tail: carry)"),
        (unusual.filtered, "samples that a stage did not want"),
        (unusual.stand_ins, "times a rank had no sample to step with"),
        (unusual.skipped_steps, f"updates left out, with their {unusual.skipped_samples:,} samples"),
    ]
    if any(count for count, _ in said):
        lines.append("; ".join(f"{count:,} {what}" for count, what in said if count))
    return lines


def _decoded(record: RunRecord) -> list[str]:
    """A line where the device's decoder did not take all of the images that it was given."""
    on_device = sum(rank.decoded_on_device for rank in record.ranks)
    on_host = sum(rank.decoded_on_host for rank in record.ranks)
    if not on_host:
        return []
    return [
        f"`decode` on the device: {on_host:,} of {on_host + on_device:,} images and masks were decoded by the ranks' "
        "CPUs, since its decoder takes usual JPEG files alone"
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
