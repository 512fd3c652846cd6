"""What a person sees of a launch and of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from raytrain.sagemaker.parcel import Parcel
from raytrain.sagemaker.quote import Quote
from raytrain.sagemaker.request import MANAGED_CHANNELS, groups_of
from raytrain.sagemaker.training_jobs import billable_s, state_of


def show_quote(quote: Quote, console: Console, parcel: Parcel | None = None, notes: tuple[str, ...] = ()) -> None:
    """What it comes to in a line, then groups, money and what is sent. Nothing is cut, however narrow the terminal."""
    for line in (_in_a_line(quote), f"job: {quote.name}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table(show_edge=False, pad_edge=False)
    for name in ("group", "instance type"):
        table.add_column(name, overflow="fold")
    for name in ("hosts", "vCPUs", "GPUs", "USD/h"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in quote.groups:
        hosts, kind = group.group.hosts, group.type
        gpus = f"{hosts * kind.gpus} {kind.gpu}" if kind.gpus else "-"
        cells = (group.group.name, kind.name, str(hosts), str(hosts * kind.vcpus), gpus, money(group.usd_per_hour))
        table.add_row(*cells)
    if len(quote.groups) > 1:
        table.add_section()
        table.add_row("", "", str(quote.num_hosts), str(quote.vcpus), str(quote.gpus or "-"), money(quote.usd_per_hour))
    console.print(table)
    for line in (*_money_lines(quote), *_request_lines(quote), *_parcel_lines(parcel), *(f"note: {n}" for n in notes)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _in_a_line(quote: Quote) -> str:
    hosts = f"{quote.num_hosts} host{'s' * (quote.num_hosts > 1)} in {quote.region}"
    if quote.usd_per_hour is None:
        return f"{hosts}, price not asked for"
    return f"{hosts} for {money(quote.usd_per_hour)} an hour, at most ${quote.max_usd:,.2f}"


def _money_lines(quote: Quote) -> list[str]:
    if quote.usd_per_hour is None:
        return []
    limit = f"its limit of {quote.max_run_s / 3600:g} h"
    if quote.keep_alive_s:
        limit += f" and the warm pool for {quote.keep_alive_s / 3600:g} h"
    lines = [
        f"price cap: ${quote.max_usd:,.2f} for the instances, if it runs to {limit}" + ", less on spot" * quote.spot
    ]
    lines += [f"prices: on demand, {s.text}, {s.date or 'undated'}" for s in quote.sources]
    if quote.break_even is not None:
        single = quote.single
        lines.append(
            f"break-even: {quote.break_even:.2f} times the samples/s of {single.group.hosts} x {single.type.name} "
            f"alone ({money(single.usd_per_hour)}/h)"
        )
    if quote.alternative is not None:
        kind, price = quote.alternative
        hosts = quote.single.group.hosts
        lines.append(
            f"beside it: {hosts} x {kind.name} alone has {hosts * kind.vcpus} vCPUs for "
            f"{money(hosts * price.usd_per_hour)}/h"
        )
    return lines


def _request_lines(quote: Quote) -> list[str]:
    request = quote.request
    lines = [f"image: {request['AlgorithmSpecification']['TrainingImage']}", f"role: {request['RoleArn']}"]
    for channel in request["InputDataConfig"]:
        source = channel["DataSource"]["S3DataSource"]
        to = f" to {', '.join(source['InstanceGroupNames'])}" if source.get("InstanceGroupNames") else ""
        if channel["ChannelName"] not in MANAGED_CHANNELS:
            lines.append(f"channel {channel['ChannelName']}: {source['S3Uri']} ({channel['InputMode']}){to}")
    lines.append(f"output: {request['OutputDataConfig']['S3OutputPath']}")
    if "CheckpointConfig" in request:
        lines.append(f"checkpoints: {request['CheckpointConfig']['S3Uri']}")
    return lines


def _parcel_lines(parcel: Parcel | None) -> list[str]:
    if parcel is None:
        return []
    lines = [f"code: {parcel.num_files} files, {parcel.num_bytes / 1e6:.1f} MB"]
    if parcel.left_out:
        lines.append(f"requirements left to the image: {', '.join(parcel.left_out)}")
    return lines


def money(usd: float | None) -> str:
    return "-" if usd is None else f"${usd:,.3f}"


def show_status(described: dict[str, Any], console: Console) -> None:
    """One job in a few lines."""
    console.print(
        f"{described['TrainingJobName']}: {state_of(described)}", markup=False, highlight=False, soft_wrap=True
    )
    for group in groups_of(described):
        seconds = billable_s(described)[group.name]
        bill = f", {seconds:,.0f} billable instance seconds" if seconds else ""
        console.print(f"  {group.name}: {group.hosts} x {group.instance_type}{bill}", markup=False, highlight=False)
    if described.get("ModelArtifacts", {}).get("S3ModelArtifacts") and described["TrainingJobStatus"] == "Completed":
        console.print(
            f"  model: {described['ModelArtifacts']['S3ModelArtifacts']}", markup=False, highlight=False, soft_wrap=True
        )


def show_jobs(summaries: list[dict[str, Any]], console: Console) -> None:
    """A table, newest first."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("name", overflow="fold")
    for name in ("status", "created", "took"):
        table.add_column(name, no_wrap=True)
    for summary in summaries:
        table.add_row(
            summary["TrainingJobName"],
            summary["TrainingJobStatus"],
            f"{summary['CreationTime'].astimezone():%Y-%m-%d %H:%M}",
            _took(summary.get("CreationTime"), summary.get("TrainingEndTime")),
        )
    console.print(table)


def _took(begin: datetime | None, end: datetime | None) -> str:
    if begin is None or end is None:
        return "-"
    minutes, seconds = divmod(int((end - begin).total_seconds()), 60)
    return f"{minutes}:{seconds:02d}"
