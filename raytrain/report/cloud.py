"""What a person sees of a launch and of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from raytrain.sagemaker.plan import Plan
from raytrain.sagemaker.request import MANAGED_CHANNELS, groups_of
from raytrain.sagemaker.stage import Staged
from raytrain.sagemaker.watch import billable_s, state_of


def show_plan(plan: Plan, console: Console, staged: Staged | None = None, notes: tuple[str, ...] = ()) -> None:
    """What it comes to in a line, then groups, money and what is sent. Nothing is cut, however narrow the terminal."""
    for line in (_in_a_line(plan), f"job: {plan.name}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table(show_edge=False, pad_edge=False)
    for name in ("group", "instance type"):
        table.add_column(name, overflow="fold")
    for name in ("hosts", "vCPUs", "GPUs", "USD/h"):
        table.add_column(name, justify="right", no_wrap=True)
    for planned in plan.groups:
        hosts, kind = planned.group.hosts, planned.type
        gpus = f"{hosts * kind.gpus} {kind.gpu}" if kind.gpus else "-"
        cells = (planned.group.name, kind.name, str(hosts), str(hosts * kind.vcpus), gpus, money(planned.usd_per_hour))
        table.add_row(*cells)
    if len(plan.groups) > 1:
        table.add_section()
        table.add_row("", "", str(plan.num_hosts), str(plan.vcpus), str(plan.gpus or "-"), money(plan.usd_per_hour))
    console.print(table)
    for line in (*_money_lines(plan), *_request_lines(plan), *_staged_lines(staged), *(f"note: {n}" for n in notes)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _in_a_line(plan: Plan) -> str:
    hosts = f"{plan.num_hosts} host{'s' * (plan.num_hosts > 1)} in {plan.region}"
    if plan.usd_per_hour is None:
        return f"{hosts}, price not asked for"
    return f"{hosts} for {money(plan.usd_per_hour)} an hour, at most ${plan.max_usd:,.2f}"


def _money_lines(plan: Plan) -> list[str]:
    if plan.usd_per_hour is None:
        return []
    limit = f"its limit of {plan.max_run_s / 3600:g} h"
    if plan.keep_alive_s:
        limit += f" and the warm pool for {plan.keep_alive_s / 3600:g} h"
    lines = [f"price cap: ${plan.max_usd:,.2f} for the instances, if it runs to {limit}" + ", less on spot" * plan.spot]
    lines += [f"prices: on demand, {s.text}, {s.date or 'undated'}" for s in plan.sources]
    if plan.break_even is not None:
        single = plan.single
        lines.append(
            f"break-even: {plan.break_even:.2f} times the samples/s of {single.group.hosts} x {single.type.name} alone "
            f"({money(single.usd_per_hour)}/h)"
        )
    if plan.alternative is not None:
        kind, price = plan.alternative
        hosts = plan.single.group.hosts
        lines.append(
            f"beside it: {hosts} x {kind.name} alone has {hosts * kind.vcpus} vCPUs for "
            f"{money(hosts * price.usd_per_hour)}/h"
        )
    return lines


def _request_lines(plan: Plan) -> list[str]:
    request = plan.request
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


def _staged_lines(staged: Staged | None) -> list[str]:
    if staged is None:
        return []
    lines = [f"code: {staged.num_files} files, {staged.num_bytes / 1e6:.1f} MB"]
    if staged.left_out:
        lines.append(f"requirements left to the image: {', '.join(staged.left_out)}")
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
