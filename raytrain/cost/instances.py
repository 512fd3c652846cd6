"""What an instance type is and what it costs: a dated, sourced snapshot, and over it what the user has read or written.

From low to high: the snapshot, the cache that `raytrain prices refresh` writes, the user's prices.yaml. The types are
those that CreateTrainingJob takes: the Inferentia families (inf1, inf2) are not among them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from raytrain.config.file import from_yaml
from raytrain.errors import ConfigError, nearest, one_line
from raytrain.record.plain_json import from_json

SNAPSHOT = Path(__file__).with_name("instances.json")
FACTS = "ec2"  # the snapshot's source of what is not a price
REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "ap-northeast-1")  # that the snapshot is kept for, as far as it goes


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InstanceType(_Entry):
    """One SageMaker instance type.

    Attributes:
        memory_gib: of the host.
        gpus: NVIDIA's; another kind of accelerator does not count.
        gpu: NVIDIA's name; None without one.
        gpu_memory_gib: of one GPU.
        accelerator: of which kind; follows from `gpus` where it is not said.
        neuron_devices: Trainium or Inferentia chips.
        neuron_device: Amazon's name, such as Trainium2; None without one.
        neuron_memory_gib: of one of them; of Trainium2 from
            the AWS Neuron documentation, because EC2's figure is five times that.
        network_gbps: peak of all network cards together; None where it is not known.
        local_storage_gb: NVMe disks, which SageMaker uses in the place of a volume; None without.
    """

    name: Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]
    vcpus: Annotated[int, Field(gt=0)]
    memory_gib: Annotated[float, Field(gt=0)]
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu: str | None = None
    gpu_memory_gib: float | None = None
    accelerator: Literal["gpu", "trainium", "inferentia"] | None = None
    neuron_devices: Annotated[int, Field(ge=0)] = 0
    neuron_device: str | None = None
    neuron_memory_gib: float | None = None
    network_gbps: float | None = None
    local_storage_gb: int | None = None
    efa: bool = False

    @model_validator(mode="before")
    @classmethod
    def _gpus_are_accelerators(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("gpus") and "accelerator" not in tree:
            return {**tree, "accelerator": "gpu"}
        return tree

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.accelerator == "gpu", self.accelerator in ("trainium", "inferentia")) != (
            self.gpus > 0,
            self.neuron_devices > 0,
        ):
            raise ValueError("accelerator, gpus and neuron_devices do not agree")
        return self

    @property
    def family(self) -> str:
        """`g5` of `ml.g5.xlarge`."""
        return self.name.split(".")[1]

    @property
    def accelerators(self) -> int:
        """Of whichever kind; 0 of a host that is there for its CPUs."""
        return self.gpus or self.neuron_devices


class Source(_Entry):
    """Where facts or prices come from.

    Attributes:
        date: ISO 8601, as precise as it is known; None when the source has none.
    """

    text: str
    date: Annotated[str | None, BeforeValidator(lambda day: day.isoformat() if isinstance(day, date) else day)] = None


class Price(_Entry):
    """On demand, of training, for an hour of one instance."""

    region: str
    type: str
    usd_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    source: str


def most_usd(usd_per_hour: float, max_run_s: float, keep_alive_s: float = 0) -> float:
    """Of a SageMaker job that runs to its limit and whose warm pool is kept to its end. Every group is billed until the
    job ends."""
    return usd_per_hour * (max_run_s + keep_alive_s) / 3600


class PriceFile(_Entry):
    """The form of the snapshot, of the cache and of a prices.yaml."""

    schema_version: Literal[1]
    sources: dict[str, Source] = {}
    types: tuple[InstanceType, ...] = ()
    prices: tuple[Price, ...] = ()


@dataclass(frozen=True)
class Catalog:
    """Types, prices and their sources; every price is of a type, and has a source.

    Attributes:
        prices: by region and type.
        sources: by the name that prices have them under.
    """

    types: dict[str, InstanceType]
    prices: dict[tuple[str, str], Price]
    sources: dict[str, Source] = field(default_factory=dict)

    @property
    def regions(self) -> list[str]:
        """Those with a price: the four that the snapshot is kept for first, then by name."""
        known = {region for region, _ in self.prices}
        return [region for region in REGIONS if region in known] + sorted(known - set(REGIONS))

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(known.family for known in self.types.values()))

    def type(self, name: str) -> InstanceType:
        """Facts of a type.

        Raises:
            ConfigError: it is not in the catalog.
        """
        if name not in self.types:
            raise ConfigError(
                f"unknown instance type {name!r}{nearest(name, self.types)}; a new one can be added to prices.yaml"
            )
        return self.types[name]

    def price(self, name: str, region: str) -> Price:
        """Price of a type in a region.

        Raises:
            ConfigError: the type or the region is unknown, or has no price here.
        """
        self.type(name)
        self.check_region(region)
        found = self.prices.get((region, name))
        if found is None:
            elsewhere = [place for place in self.regions if (place, name) in self.prices]
            only = f" (only in {', '.join(elsewhere)})" if elsewhere else ""
            raise ConfigError(f"there is no price of {name} in {region} here{only}; {_remedy(region)}")
        return found

    def check_region(self, region: str) -> None:
        """
        Raises:
            ConfigError: there is not one price of this region.
        """
        if region not in self.regions:
            hint = "" if region in REGIONS else nearest(region, {*REGIONS, *self.regions})
            raise ConfigError(
                f"there are no prices of region {region!r} here (only of {', '.join(self.regions)}){hint}; "
                f"{_remedy(region)}"
            )

    def source(self, price: Price) -> Source:
        return self.sources[price.source]

    def siblings(self, name: str) -> tuple[InstanceType, ...]:
        """All types of the same family, smallest first."""
        family = self.type(name).family
        return tuple(sorted((t for t in self.types.values() if t.family == family), key=lambda t: (t.vcpus, t.name)))


def _remedy(region: str) -> str:
    return (
        f"`raytrain prices refresh --region {region}` reads them from AWS, prices.yaml or --prices FILE adds your own, "
        "and --no-prices launches without"
    )


def cache_file() -> Path:
    """Where `raytrain prices refresh` keeps what it read: in the user's cache folder."""
    from platformdirs import user_cache_path  # here, so that the hosts of a job, which look up no price, can do without

    return user_cache_path("raytrain") / "prices.json"


def own_file() -> Path | None:
    """The user's prices.yaml: of the current folder, else of the user's configuration folder; None without one."""
    from platformdirs import user_config_path

    places = (Path("prices.yaml"), user_config_path("raytrain") / "prices.yaml")
    return next((path for path in places if os.path.isfile(path)), None)


def catalog(extra: Path | None = None) -> Catalog:
    """What is known of types and prices. What a higher layer says of a type or a price takes the place of a lower one.

    Args:
        extra: a file of the user's in the place of prices.yaml.

    Raises:
        ConfigError: a file cannot be read, is not of this form, or prices a type that nobody knows.
    """
    known = _snapshot()
    cached, own = read_cache(), extra or own_file()
    if cached:
        known = _over(known, cached, cache_file())
    if own:
        mine = _read(own)
        known = _over(known, mine, own)
        for name in (price.type for price in mine.prices if price.type not in known.types):
            hint = nearest(name, known.types)
            raise ConfigError(f"{own} prices the unknown instance type {name!r}{hint}; give its facts in `types`")
    # AWS may list types that are newer than our facts
    return Catalog(known.types, {k: p for k, p in known.prices.items() if p.type in known.types}, known.sources)


def read_cache() -> PriceFile | None:
    """What the last refresh left; None before the first.

    Raises:
        ConfigError: the file is damaged.
    """
    path = cache_file()
    if not os.path.exists(path):
        return None
    try:
        return _read(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; run `raytrain prices refresh` again, or delete the file") from None


def write_cache(prices: Iterable[Price], sources: dict[str, Source]) -> Path:
    """Put a new cache into the place of the old one, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    path = cache_file()
    content = PriceFile(schema_version=1, sources=sources, prices=tuple(prices)).model_dump_json(indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, draft = tempfile.mkstemp(dir=path.parent, suffix=".part")  # one's own: two may refresh at a time
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(content + "\n")
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write the prices to {path}: {error.strerror}") from None
    return path


def _over(below: Catalog, added: PriceFile, path: Path) -> Catalog:
    """A layer over the ones below. A source that has the name of another one there gets the file's name with it, so
    that prices below keep theirs."""
    named = {p.source: Source(text=p.source) for p in added.prices if p.source not in below.sources} | added.sources
    names = {name: name if below.sources.get(name, s) == s else f"{name} ({path})" for name, s in named.items()}
    prices = (p.model_copy(update={"source": names.get(p.source, p.source)}) for p in added.prices)
    return Catalog(
        {**below.types, **{t.name: t for t in added.types}},
        {**below.prices, **{(p.region, p.type): p for p in prices}},
        {**below.sources, **{names[name]: source for name, source in named.items()}},
    )


@cache
def _snapshot() -> Catalog:
    return _over(Catalog({}, {}, {}), _read(SNAPSHOT), SNAPSHOT)


def _read(path: Path) -> PriceFile:
    form = "JSON" if path.suffix == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8")
        return PriceFile.model_validate(from_json(text) if form == "JSON" else from_yaml(text))
    except OSError as error:
        raise ConfigError(f"cannot read the prices in {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path} is not a file of prices: {where}: {first['msg']}") from None
    except (ValueError, yaml.YAMLError) as error:  # of ValueError: not UTF-8, not JSON
        raise ConfigError(f"the prices in {path} are not {form}: {one_line(error, 200)}") from None
