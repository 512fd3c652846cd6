"""Prices of training instances, read from the AWS Price List API into the user's cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from raytrain.cost.instances import REGIONS, Price, PriceFile, Source, read_cache, write_cache
from raytrain.errors import CloudError, ConfigError, nearest
from raytrain.sagemaker import aws

ENDPOINT_REGION = "us-east-1"  # one of the few places that answer, with the prices of all regions
PAGE_SIZE = 100  # the API's limit
SOURCE = "AWS Price List API, component Training, read by raytrain prices refresh"

# `USE1-Train:ml.g5.xlarge`. Other usage of the same type has other names, and may have other prices: fees for training
# plans, hosting, clusters, and free tiers.
TRAINING = re.compile(r"(?:[A-Z0-9]+-)?Train:(ml\.[a-z0-9-]+\.[a-z0-9-]+)")


@dataclass(frozen=True)
class Rate:
    """An hour of one type, on demand.

    Attributes:
        effective: the day, ISO 8601, since which AWS asks it.
    """

    type: str
    usd_per_hour: float
    effective: str


@dataclass(frozen=True)
class RegionRead:
    """What the price list said of a region.

    Attributes:
        skipped: how many entries were no hourly price of one training instance, or repeated or contradicted another.
            Of two prices for one type neither is taken.
    """

    region: str
    rates: tuple[Rate, ...]
    skipped: int

    @property
    def effective(self) -> str:
        """The latest date."""
        return max(rate.effective for rate in self.rates)


class _Dimension(BaseModel):
    unit: str
    pricePerUnit: dict[str, float]  # by currency; AWS's spelling, here and below


class _Term(BaseModel):
    effectiveDate: datetime
    priceDimensions: dict[str, _Dimension]


class _Product(BaseModel):
    attributes: dict[str, str]


class _Terms(BaseModel):
    OnDemand: dict[str, _Term]


class _Entry(BaseModel):
    product: _Product
    terms: _Terms


def refresh(
    regions: Sequence[str] = REGIONS, say: Callable[[str], None] = lambda text: None
) -> tuple[Path, tuple[RegionRead, ...]]:
    """Read the prices of these regions, and put them into the cache in the place of what it has of them.

    The cache is written when every region has been read, or not at all; of other regions it keeps what it has.

    Args:
        say: told of each region that is being read.

    Raises:
        CloudError: AWS cannot be reached, refuses, or lists no price of a region.
        ConfigError: boto3 is not installed, or the cache cannot be written.
    """
    known = aws.account(ENDPOINT_REGION)
    client = known.client("pricing")
    found = []
    for region in dict.fromkeys(regions):
        say(f"reading the prices of {region}")
        read = read_region(region, client)
        if not read.rates:
            names = known.session.get_available_regions("sagemaker")
            hint = "" if region in names else nearest(region, names)
            raise CloudError(
                f"the AWS Price List has no training prices of region {region!r}{hint}; the prices read before are kept"
            )
        found.append(read)
    return _write(found), tuple(found)


def read_region(region: str, client: Any) -> RegionRead:
    """All pages of a region's price list.

    Raises:
        CloudError: AWS cannot be reached or refuses.
    """
    wanted = {"regionCode": region, "component": "Training"}
    pages = client.get_paginator("get_products").paginate(
        ServiceCode="AmazonSageMaker",
        FormatVersion="aws_v1",
        Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()],
        PaginationConfig={"PageSize": PAGE_SIZE},
    )
    with aws.explained(f"reading the prices of {region}"):
        items = [item for page in pages for item in page["PriceList"]]
    rates: dict[str, set[Rate]] = {}
    for rate in filter(None, (rate_of(item, wanted) for item in items)):
        rates.setdefault(rate.type, set()).add(rate)
    clear = [
        max(found, key=lambda rate: rate.effective)
        for _, found in sorted(rates.items())
        if len({rate.usd_per_hour for rate in found}) == 1
    ]
    return RegionRead(region, tuple(clear), len(items) - len(clear))


def rate_of(item: str, wanted: dict[str, str]) -> Rate | None:
    """The price in an entry of the price list; None if it is not one hourly price of one training instance.

    Args:
        item: JSON text.
        wanted: attributes that it must have.
    """
    try:
        entry = _Entry.model_validate_json(item)
    except ValidationError:
        return None
    attributes = entry.product.attributes
    usage = TRAINING.fullmatch(attributes.get("usagetype", ""))
    if usage is None or any(attributes.get(name) != value for name, value in wanted.items()):
        return None
    if attributes.get("instanceName", usage[1]) != usage[1]:
        return None
    hourly = {
        (dimension.pricePerUnit.get("USD", 0.0), f"{term.effectiveDate:%Y-%m-%d}")
        for term in entry.terms.OnDemand.values()
        for dimension in term.priceDimensions.values()
        if dimension.unit == "Hrs"
    }
    if len(hourly) != 1:
        return None
    [(usd, effective)] = hourly
    return Rate(usage[1], usd, effective) if 0 < usd < float("inf") else None


def _write(found: Sequence[RegionRead]) -> Path:
    try:
        before = read_cache()
    except ConfigError:  # damaged: this mends it
        before = None
    before = before or PriceFile(schema_version=1)
    regions = {read.region for read in found}
    kept = [price for price in before.prices if price.region not in regions]
    sources = {name: before.sources[name] for name in sorted({price.source for price in kept} & set(before.sources))}
    for read in found:
        for rate in read.rates:
            name = f"price-list-api {rate.effective}"
            sources[name] = Source(text=SOURCE, date=rate.effective)
            kept.append(Price(region=read.region, type=rate.type, usd_per_hour=rate.usd_per_hour, source=name))
    return write_cache(kept, sources)
