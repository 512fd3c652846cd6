"""`raytrain prices`: what instances cost, with the date and the source of every price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raytrain.cli.options import Json
from raytrain.cost.instances import FACTS, REGIONS, Catalog, InstanceType, Price, Source, catalog
from raytrain.errors import ConfigError, nearest
from raytrain.report.fitting import Column, show_fitted

WIDTH_OF_A_FILE = 160  # characters, for four regions side by side
TITLE = "USD an hour, on demand, SageMaker training"
MARKS = "abcdefghijklmnopqrstuvwxyz"


class ShowByDefault(TyperGroup):
    """`raytrain prices --region R` is `raytrain prices show --region R`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["show", *args])


app = typer.Typer(
    cls=ShowByDefault,
    help="Show what instances cost (the default), or read it anew from AWS.",
    epilog="Example: raytrain prices --families g5,c5 --region us-east-1 --json",
)


@app.command(epilog="Example: raytrain prices show --families g5,c5 --region us-east-1")
def show(
    region: Annotated[str | None, typer.Option(help="Only of this region.")] = None,
    families: Annotated[str | None, typer.Option(metavar="FAMILY,...", help="Only these, such as g5,c5.")] = None,
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More types and prices, in the place of prices.yaml.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Types without a price too.")] = False,
    as_json: Json = False,
) -> None:
    """Show types and prices, each with its date and source."""
    from raytrain.report.terminal import terminal

    known = catalog(prices)
    regions = [region] if region else known.regions
    types = _chosen(known, regions, families, everything)
    if as_json:
        typer.echo(json.dumps(_tree(known, types, regions), indent=1))
        return
    console = terminal(standard_output=True)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    marks = _marks(known, types, regions)
    columns, rows = _columns(regions), _rows(known, types, regions, marks)
    show_fitted(TITLE, columns, rows, console, "a wider terminal, --region or --json has them")
    for line in _legend(known, regions, marks, region):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command(epilog="Example: raytrain prices refresh --region eu-west-1 --region us-east-1")
def refresh(
    region: Annotated[list[str] | None, typer.Option(help=f"May be repeated; instead of {', '.join(REGIONS)}.")] = None,
    as_json: Json = False,
) -> None:
    """Read the prices from the AWS Price List API into your cache."""
    from raytrain.sagemaker import pricing

    path, read = pricing.refresh(region or REGIONS, say=lambda text: typer.echo(text, err=True))
    if as_json:
        found = {
            one.region: {"prices": len(one.rates), "skipped": one.skipped, "effective": one.effective} for one in read
        }
        typer.echo(json.dumps({"file": str(path), "regions": found}, indent=1))
        return
    for one in read:
        skipped = f"; {one.skipped} other entries skipped" if one.skipped else ""
        typer.echo(f"{one.region}: {len(one.rates)} prices, in force since {one.effective}{skipped}")
    typer.echo(path)


def _chosen(known: Catalog, regions: list[str], families: str | None, everything: bool) -> list[InstanceType]:
    """The types to show, family by family, the smallest first.

    Raises:
        ConfigError: a family or a region is unknown, or there is nothing to show.
    """
    for region in regions:
        known.check_region(region)
    wanted = known.families
    if families is not None:
        wanted = [name.strip().removeprefix("ml.") for name in families.strip(", ").split(",")]
    for family in wanted:
        if family not in known.families:
            raise ConfigError(f"unknown instance family {family!r}{nearest(family, known.families)}")
    ordered = sorted((t for t in known.types.values() if t.family in wanted), key=_order)
    found = [t for t in ordered if everything or any((region, t.name) in known.prices for region in regions)]
    if not found:
        raise ConfigError(
            f"there is no price of {', '.join(wanted)} in {', '.join(regions)} here; --all shows what else is known, "
            "`raytrain prices refresh` reads prices from AWS"
        )
    return found


def _order(kind: InstanceType) -> tuple[bool, str, int, str]:
    return kind.accelerator is None, kind.family, kind.vcpus, kind.name


def _marks(known: Catalog, types: list[InstanceType], regions: list[str]) -> dict[str, str]:
    """Source -> its letter, in the order in which they are met."""
    cells = ((region, kind.name) for kind in types for region in regions)
    sources = dict.fromkeys(known.prices[cell].source for cell in cells if cell in known.prices)
    return {name: MARKS[number] if number < len(MARKS) else str(number) for number, name in enumerate(sources)}


def _columns(regions: list[str]) -> list[Column]:
    """The type and its price in the first region are never left out."""
    return [
        Column("type", right=False),
        Column("vCPUs", leave=2),
        Column("GiB", leave=4),
        Column("accelerators", leave=1, right=False),
        Column("Gbit/s", leave=6),
        *(Column(region, leave=3 if number else 0) for number, region in enumerate(regions)),
        Column("per vCPU-hour", leave=5),
    ]


def _rows(known: Catalog, types: list[InstanceType], regions: list[str], marks: dict[str, str]) -> list[list[str]]:
    """Cells of the columns."""
    rows = []
    for kind in types:
        found = [known.prices.get((region, kind.name)) for region in regions]
        facts = [kind.name, str(kind.vcpus), f"{kind.memory_gib:g}", _accelerators(kind)]
        facts.append("-" if kind.network_gbps is None else f"{kind.network_gbps:g}")
        shown = ["-" if price is None else f"{price.usd_per_hour:,.4f} {marks[price.source]}" for price in found]
        rows.append([*facts, *shown, _span([_per_vcpu(kind, price) for price in found if price])])
    return rows


def _accelerators(kind: InstanceType) -> str:
    count, name, memory = kind.gpus, kind.gpu, kind.gpu_memory_gib
    if kind.neuron_devices:
        count, name, memory = kind.neuron_devices, kind.neuron_device, kind.neuron_memory_gib
    if not count:
        return "-"
    return f"{count} x {name or kind.accelerator}" + (f", {memory:g} GiB" if memory else "")


def _per_vcpu(kind: InstanceType, price: Price) -> float | None:
    """USD; None for a type with accelerators, which one does not take for its CPUs."""
    return None if kind.accelerator else price.usd_per_hour / kind.vcpus


def _span(values: list[float | None]) -> str:
    """One figure, or the lowest and the highest of several regions."""
    known = sorted({f"{value:.4f}" for value in values if value is not None})
    return " to ".join(dict.fromkeys((known[0], known[-1]))) if known else "-"


def _legend(known: Catalog, regions: list[str], marks: dict[str, str], asked: str | None) -> list[str]:
    lines = [f"{mark}: {_said(known.sources[name])}" for name, mark in marks.items()]
    lines.append(f"types, but for your own: {_said(known.sources[FACTS])}")
    missing = [name for name in REGIONS if name not in regions]
    if missing and not asked:
        lines.append(f"no prices of {', '.join(missing)}: `raytrain prices refresh` reads them from AWS")
    return lines


def _said(source: Source) -> str:
    return f"{source.text} ({source.date or 'undated'})"


def _tree(known: Catalog, types: list[InstanceType], regions: list[str]) -> dict[str, Any]:
    """For a program to read."""
    return {
        "regions": regions,
        "facts": known.sources[FACTS].model_dump(),
        "types": [
            {
                **kind.model_dump(),
                "prices": {
                    region: _price_tree(known, kind, known.prices[region, kind.name])
                    for region in regions
                    if (region, kind.name) in known.prices
                },
            }
            for kind in types
        ],
    }


def _price_tree(known: Catalog, kind: InstanceType, price: Price) -> dict[str, Any]:
    source = known.source(price)
    return {
        "usd_per_hour": price.usd_per_hour,
        "usd_per_vcpu_hour": _per_vcpu(kind, price),
        "source": source.text,
        "date": source.date,
    }
