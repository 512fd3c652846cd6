"""What an instance type is and what it costs: a dated, sourced snapshot that the user can add to."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raytrain.errors import ConfigError, nearest, one_line

SNAPSHOT = Path(__file__).with_name("instances.json")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InstanceType(_Entry):
    """One SageMaker instance type.

    Attributes:
        memory_gib: of the host.
        gpu: NVIDIA's name; None without one.
        gpu_memory_gib: of one GPU.
        network_gbps: peak of all network cards together; None where it is not known.
        local_storage_gb: NVMe disks, which SageMaker uses in the place of a volume; None without.
    """

    name: Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]
    vcpus: Annotated[int, Field(gt=0)]
    memory_gib: Annotated[float, Field(gt=0)]
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu: str | None = None
    gpu_memory_gib: float | None = None
    network_gbps: float | None = None
    local_storage_gb: int | None = None
    efa: bool = False

    @property
    def family(self) -> str:
        """`g5` of `ml.g5.xlarge`."""
        return self.name.split(".")[1]


class Source(_Entry):
    """Where facts or prices come from.

    Attributes:
        date: ISO 8601, as precise as it is known; None when the source has none.
    """

    text: str
    date: str | None = None


class Price(_Entry):
    """On demand, of training, for an hour of one instance."""

    region: str
    type: str
    usd_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    source: str


class _File(_Entry):
    schema_version: Literal[1]
    sources: dict[str, Source] = {}
    types: tuple[InstanceType, ...] = ()
    prices: tuple[Price, ...] = ()


@dataclass(frozen=True)
class Catalog:
    """Types, prices and their sources."""

    types: dict[str, InstanceType]
    prices: dict[tuple[str, str], Price]
    sources: dict[str, Source] = field(default_factory=dict)

    def type(self, name: str) -> InstanceType:
        """Facts of a type.

        Raises:
            ConfigError: it is not in the catalog.
        """
        if name not in self.types:
            raise ConfigError(
                f"unknown instance type {name!r}{nearest(name, self.types)}; add a new one by --prices FILE"
            )
        return self.types[name]

    def price(self, name: str, region: str) -> Price:
        """Price of a type in a region.

        Raises:
            ConfigError: the type or the region is unknown, or has no price here.
        """
        self.type(name)
        found = self.prices.get((region, name))
        if found is None:
            regions = sorted({region for region, _ in self.prices})
            elsewhere = [place for place in regions if (place, name) in self.prices]
            if region not in regions:
                reason = f"there are no prices of region {region!r} here (only of {', '.join(regions)})"
            else:
                reason = f"there is no price of {name} in {region} here"
                reason += f" (only in {', '.join(elsewhere)})" if elsewhere else ""
            raise ConfigError(f"{reason}; add it by --prices FILE, or go without by --no-prices")
        return found

    def source(self, price: Price) -> Source:
        return self.sources[price.source]

    def siblings(self, name: str) -> tuple[InstanceType, ...]:
        """All types of the same family, smallest first."""
        family = self.type(name).family
        return tuple(sorted((t for t in self.types.values() if t.family == family), key=lambda t: (t.vcpus, t.name)))


def catalog(extra: Path | None = None) -> Catalog:
    """The snapshot, and what a file of the user's adds to it or puts in its place.

    Raises:
        ConfigError: the file cannot be read, or is not of this form.
    """
    own = _snapshot()
    if extra is None:
        return own
    added = _read(extra)
    unnamed = sorted({p.source for p in added.prices} - set(added.sources) - set(own.sources))
    return Catalog(
        {**own.types, **{t.name: t for t in added.types}},
        {**own.prices, **{(p.region, p.type): p for p in added.prices}},
        {**own.sources, **{name: Source(text=name) for name in unnamed}, **added.sources},
    )


@cache
def _snapshot() -> Catalog:
    read = _read(SNAPSHOT)
    return Catalog({t.name: t for t in read.types}, {(p.region, p.type): p for p in read.prices}, read.sources)


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read the prices in {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path} is not a file of prices: {where}: {first['msg']}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the prices in {path} are not YAML: {one_line(error, 200)}") from None
