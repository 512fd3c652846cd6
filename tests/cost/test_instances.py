"""Facts and prices of instance types."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files

import pytest

from raytrain.cost.instances import SNAPSHOT, catalog
from raytrain.errors import ConfigError


def test_every_fact_is_the_one_of_ec2():
    """moto carries what Amazon's own DescribeInstanceTypes says."""
    ec2 = json.loads(gzip.decompress((files("moto") / "ec2/resources/instance_types.json.gz").read_bytes()))
    ours = catalog().types
    assert len(ours) > 200
    for name, mine in ours.items():
        theirs = ec2[name.removeprefix("ml.")]
        gpus = [g for g in theirs.get("GpuInfo", {}).get("Gpus", []) if g["Manufacturer"] == "NVIDIA"]
        assert mine.vcpus == theirs["VCpuInfo"]["DefaultVCpus"], name
        assert mine.memory_gib == theirs["MemoryInfo"]["SizeInMiB"] / 1024, name
        assert (mine.gpus, mine.gpu) == (sum(g["Count"] for g in gpus), gpus[0]["Name"] if gpus else None), name
        assert mine.local_storage_gb == theirs.get("InstanceStorageInfo", {}).get("TotalSizeInGB"), name
        assert mine.efa == theirs["NetworkInfo"]["EfaSupported"], name


def test_every_type_is_one_that_sagemaker_trains_on():
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    assert set(catalog().types) <= set(model.shape_for("TrainingInstanceType").enum)


def test_every_price_has_a_source_and_a_type():
    known = catalog()
    for price in known.prices.values():
        assert price.type in known.types
        assert known.source(price).text


def test_prices_of_both_sources_agree_where_both_list_a_type():
    prices = catalog().prices
    both = {name for region, name in prices if region == "us-west-2" and ("us-east-1", name) in prices}
    assert "ml.g5.2xlarge" in both
    for name in both:
        assert prices["us-west-2", name].usd_per_hour == prices["us-east-1", name].usd_per_hour


def test_the_reference_jobs_price():
    known = catalog()
    assert known.price("ml.g5.xlarge", "us-east-1").usd_per_hour == 1.408
    assert known.price("ml.c5.4xlarge", "us-east-1").usd_per_hour == 0.816


def test_siblings_are_the_family_smallest_first():
    names = [t.name for t in catalog().siblings("ml.g5.xlarge")]
    assert names[0] == "ml.g5.xlarge"
    assert names[-1] == "ml.g5.48xlarge"
    assert "ml.g5.12xlarge" in names


@pytest.mark.parametrize(
    ("name", "region", "message"),
    [
        ("ml.g5.xlrge", "us-east-1", "unknown instance type 'ml.g5.xlrge'; did you mean 'ml.g5.xlarge'"),
        ("ml.g5.xlarge", "mars-1", r"no prices of region 'mars-1' here \(only of us-east-1, us-west-2\)"),
        ("ml.c5.4xlarge", "us-west-2", r"no price of ml.c5.4xlarge in us-west-2 here \(only in us-east-1\)"),
        ("ml.p4de.24xlarge", "us-west-2", r"no price of ml.p4de.24xlarge in us-west-2 here; add it by --prices"),
    ],
)
def test_what_is_not_known_is_an_error_that_says_so(name, region, message):
    with pytest.raises(ConfigError, match=message):
        catalog().price(name, region)


def test_a_file_of_the_users_adds_and_replaces(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        """
schema_version: 1
types:
  - {name: ml.x9.huge, vcpus: 512, memory_gib: 2048}
prices:
  - {region: eu-west-1, type: ml.x9.huge, usd_per_hour: 12.5, source: my contract}
  - {region: us-east-1, type: ml.g5.xlarge, usd_per_hour: 1.0, source: my contract}
"""
    )
    known = catalog(path)
    mine = known.price("ml.x9.huge", "eu-west-1")
    assert (mine.usd_per_hour, known.source(mine).text) == (12.5, "my contract")
    assert known.price("ml.g5.xlarge", "us-east-1").usd_per_hour == 1.0
    assert catalog().price("ml.g5.xlarge", "us-east-1").usd_per_hour == 1.408


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the prices in"),
        ("a: [", "are not YAML"),
        ("[]", "is not a file of prices: the file"),
        ("schema_version: 1\nprices: [{region: x, type: y, usd_per_hour: -1, source: z}]", r"prices.0.usd_per_hour"),
        ("schema_version: 1\nprices: [{region: x, type: y, usd_per_hour: .inf, source: z}]", r"prices.0.usd_per_hour"),
        ("schema_version: 2", "schema_version"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        catalog(path)
    assert "\n" not in str(caught.value)


def test_the_snapshot_is_dated():
    assert all("date" in source for source in json.loads(SNAPSHOT.read_text())["sources"].values())
