"""Where stages run: what a diagnosis and a plan say of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raytrain.cost.planner import Plan, Prediction
from raytrain.report.fitting import Column, number
from raytrain.study.places import Where

NOTHING_MOVES = "stages stay where they are: none that runs on CPUs can be moved to the device"
MUCH = 0.1  # by which stages in a step are dearer or cheaper than alone, to be said


def places_lines(found: Where | None) -> list[str]:
    """Of a diagnosis."""
    if found is None:
        return [NOTHING_MOVES]
    if found.on_device:
        line = (
            f"cheapest: {names_of(found.on_device)} on the device: {found.on_cpus:,.0f} -> {found.expected:,.0f} "
            f"samples/s expected, +0 hosts, {found.device_share:.0%} of the device's time"
        )
    else:
        line = (
            f"cheapest: every stage on CPUs: {found.on_cpus:,.0f} samples/s expected; {found.all_on_device:,.0f} with "
            f"{names_of(dict.fromkeys(found.seconds, 1.0))} on the device"
        )
    lines = [line]
    if abs(found.dearer - 1) >= MUCH:
        more = f"{abs(found.dearer - 1):.0%} {'more' if found.dearer > 1 else 'less'}"
        lines.append(f"in a step with the model the stages on the device take {more} than alone; that is reckoned with")
    if found.shared:
        lines.append("the device is a CPU here, which shares its cores with the workers: a GPU has other figures")
    return lines


def names_of(on_device: Mapping[str, float]) -> str:
    """`blur and to_uint8`, `blur (60% of the batches) and to_uint8`."""
    told = [name if share >= 1 else f"{name} ({share:.0%} of the batches)" for name, share in on_device.items()]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


WAYS = (
    Column("where the stages run", right=False),
    Column("cheapest shape of that way", right=False, narrow=lambda text: text.replace(" + ", "\n+ ")),
    Column("samples/s", leave=1),
    Column("device time", leave=2),
    Column("$/million"),
)


def ways(plan: Plan) -> list[tuple[str, Prediction]]:
    """The cheapest shape of each way to feed the accelerators; none where stages can run on CPUs alone."""
    if len(plan.cuts) == 1:
        return []
    moved, alone = plan.figures["device_share"] > 0, plan.figures["first_hosts"] == 0
    there = plan.best_where(moved & alone)
    found = [("on the device", there)]
    if plan.on_cpus is not None:
        found.insert(0, ("all on CPUs, no CPU hosts", plan.on_cpus.best_without_cpu_hosts))
        found.append(("all on CPUs, with CPU hosts", plan.on_cpus.best_with_cpu_hosts))
        found.append(("all on CPUs, a larger sibling", larger_sibling(plan.on_cpus, there)))
    found.append(("on the device, with CPU hosts", plan.best_where(moved & ~alone)))
    return [(way, each) for way, each in found if each is not None]


def larger_sibling(on_cpus: Plan, small: Prediction | None) -> Prediction | None:
    """The cheapest of as many of the same GPUs on hosts of the same family, with more vCPUs and no CPU hosts."""
    if small is None:
        return None
    types, figures = on_cpus.gpus.types, on_cpus.figures
    own = next(each for each in types if each.name == small.shape.gpu_type)
    alike = np.array([(each.family, each.gpu) == (own.family, own.gpu) for each in types])
    gpus = np.array([each.gpus for each in types])[figures["gpu"]] * figures["gpu_hosts"]
    vcpus = np.array([each.vcpus for each in types])[figures["gpu"]] * figures["gpu_hosts"]
    hosts = small.shape.gpu_hosts
    mask = alike[figures["gpu"]] & (gpus == own.gpus * hosts) & (vcpus > own.vcpus * hosts)
    return on_cpus.best_where(mask & (figures["first_hosts"] == 0))


def way_rows(plan: Plan) -> list[list[str]]:
    """Cells of WAYS."""
    return [
        [
            way,
            str(each.shape),
            number(each.samples_per_s, least=0),
            f"{each.device_share:.0%}" if each.on_device else "-",
            number(each.usd_per_million_samples),
        ]
        for way, each in ways(plan)
    ]


def takes(plan: Plan) -> str | None:
    """Which of them, and why, in one line; None where stages can run on CPUs alone."""
    if len(plan.cuts) == 1:
        return None
    best = plan[0]
    if best.on_device:
        hosts = sum(count for _, count in best.shape.cpu_hosts)
        text = (
            f"takes {names_of(best.on_device)} on the device of {best.shape.gpu_hosts} x {best.shape.gpu_type}: "
            f"+{hosts} hosts, -{best.device_share:.0%} device time"
        )
        if plan.on_cpus is None:
            return f"{text}; no shape is within the limits with every stage on CPUs"
        other = plan.on_cpus[0]
        return f"{text}, {_against(best, other)} ({other.shape}, the best with every stage on CPUs)"
    moved, alone = plan.figures["device_share"] > 0, plan.figures["first_hosts"] == 0
    there = plan.best_where(moved & alone) or plan.best_where(moved)
    if there is None:
        return "takes every stage on CPUs: none makes a shape faster on the device"
    return (
        f"takes every stage on CPUs: {_against(best, there)} with {names_of(there.on_device)} on the device of "
        f"{there.shape}, -{there.device_share:.0%} device time"
    )


def _against(best: Prediction, other: Prediction) -> str:
    """In money of a million samples, or of the job where its start-up decides otherwise."""
    mine, others = best.usd_per_million_samples, other.usd_per_million_samples
    if mine <= others:
        return f"${number(mine)} against ${number(others)} a million samples"
    return f"${number(best.usd)} against ${number(other.usd)} for the job"
