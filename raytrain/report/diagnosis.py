"""What a diagnosis says: tables of what was measured, who waits, and what helps."""

from __future__ import annotations

from rich.console import Console

from raytrain.cost.profile import Profile
from raytrain.report.costs import figure_text, profile_rows, share
from raytrain.report.fitting import Column, show_fitted
from raytrain.report.places import places_lines
from raytrain.study.advice import BUSY_RANKS, advice
from raytrain.study.diagnose import Findings

REMEDY = "a wider terminal or --json has them"


def show_diagnosis(findings: Findings, profile: Profile, console: Console) -> None:
    _parts(findings, console)
    _profile(profile, console)
    _stages(findings, console)
    for line in diagnosis_lines(findings):
        console.print(line, markup=False, highlight=False)


def diagnosis_lines(findings: Findings) -> list[str]:
    """Who waits, what the whole lacks, where stages had best run, what helps, and what not to trust."""
    return [
        f"bottleneck: {findings.verdict.text}",
        _lost(findings),
        *places_lines(findings.where),
        *what_helps(findings),
        *findings.warnings,
    ]


def what_helps(findings: Findings) -> list[str]:
    """Cheaper stages, unless the accelerators are busy anyway; ranks on the CPU share their cores with the stages."""
    gaps = [findings.verdict.gaps] if findings.verdict.gaps else []
    if findings.verdict.kind == "compute" and not findings.ranks_on_cpu:
        return gaps or [BUSY_RANKS]
    return [*gaps, *advice(findings.stages, findings.helps)]


def _lost(findings: Findings) -> str:
    ranks = "the ranks, which train on the CPU," if findings.ranks_on_cpu else "the accelerators"
    return (
        f"the whole does {share(findings.lost_share)} less than {ranks} do alone: {share(findings.lost_for_cpus)} "
        f"because the CPUs cannot prepare more, {share(findings.lost_for_the_rest)} for the rest (moving, handing "
        "over, sharing cores)"
    )


def _parts(findings: Findings, console: Console) -> None:
    ranks = "ranks alone, on the CPU" if findings.ranks_on_cpu else "accelerator alone, batches on the device"
    rows = [
        ("preprocessing alone, one core", findings.preprocessing_alone),
        ("preprocessing alone, all CPUs", findings.preprocessing),
        (ranks, findings.accelerator),
    ]
    if findings.together is not None:
        rows.append(("both on the same cores, at most", findings.together))
    rows.append(("everything", findings.everything))
    columns = (Column("", right=False), Column("samples/s"))
    show_fitted("What each part can do", columns, [(name, f"{value:,.1f}") for name, value in rows], console, REMEDY)


def _profile(profile: Profile, console: Console) -> None:
    columns = (Column("", right=False), Column("median"), Column("lowest", 1), Column("highest", 1))
    rows = [
        (name, *(figure_text(value, unit) for value in (figure.value, figure.low, figure.high)))
        for name, figure, unit in profile_rows(profile)
    ]
    show_fitted("The profile", columns, rows, console, "the profile's file has them")


def _stages(findings: Findings, console: Console) -> None:
    columns = [Column("stage", right=False), Column("CPU ms"), Column("of all", 2), Column("wall ms", 1)]
    alone = {stage.name: f"{stage.cpu_s_per_sample * 1e3:.3f}" for stage in findings.stages_alone}
    columns += [Column("CPU ms, one core", 3)] if alone else []
    seconds = findings.where.seconds if findings.where else {}
    columns += [Column("device ms"), Column("beside the model", 3)] if seconds else []
    cpu_s = sum(stage.cpu_s for stage in findings.stages)
    rows = []
    for stage in findings.stages:
        of_all = share(stage.cpu_s / cpu_s if cpu_s else None)
        cpu_ms, wall_ms = stage.cpu_s_per_sample * 1e3, stage.wall_s_per_sample * 1e3
        row = [stage.name, f"{cpu_ms:.3f}", of_all, f"{wall_ms:.3f}"]
        row += [alone.get(stage.name, "-")] if alone else []
        there = seconds.get(stage.name)
        row += ([f"{s * 1e3:.3f}" for s in (there.alone, there.beside)] if there else ["-", "-"]) if seconds else []
        rows.append(row)
    show_fitted("Where a sample's time goes", columns, rows, console, REMEDY)
    if findings.device_stages:
        rows = [[name, f"{each_s * 1e3:.3f}"] for name, each_s in findings.device_stages.items()]
        show_fitted(
            "Stages on the device, a sample", (Column("stage", right=False), Column("ms")), rows, console, REMEDY
        )
