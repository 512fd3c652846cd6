"""Facts and prices of instance types."""

from __future__ import annotations

import gzip
import json
import os
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.cost.instances import REGIONS, SNAPSHOT, Price, Source, cache_file, catalog, write_cache
from raytrain.errors import ConfigError

TYPES = ["ml.g5.xlarge", "ml.c5.xlarge", "ml.m5.xlarge"]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty current folder, configuration and cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def prices_yaml(path: Path, prices: dict[tuple[str, str], float], source: str = "mine") -> Path:
    """The file, with these prices by region and type."""
    rows = [{"region": r, "type": t, "usd_per_hour": usd, "source": source} for (r, t), usd in prices.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"schema_version": 1, "prices": rows}))
    return path


def cached(prices: dict[tuple[str, str], float]) -> Path:
    rows = [Price(region=r, type=t, usd_per_hour=usd, source="read") for (r, t), usd in prices.items()]
    return write_cache(rows, {"read": Source(text="AWS", date="2026-11-01")})


def neuron_of(theirs) -> tuple:
    """Number, name and GiB of a type's Trainium chips."""
    [found] = theirs.get("NeuronInfo", {}).get("NeuronDevices", [None])
    if found is None:
        return 0, None, None
    # EC2 says 512 GiB of a Trainium2; AWS Neuron's Trn2 architecture page says 1,536 of sixteen
    memory = 96 if found["Name"] == "Trainium2" else found["MemoryInfo"]["SizeInMiB"] / 1024
    return found["Count"], found["Name"], memory


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
        assert mine.gpu_memory_gib == (round(gpus[0]["MemoryInfo"]["SizeInMiB"] / 1024, 1) if gpus else None), name
        assert (mine.neuron_devices, mine.neuron_device, mine.neuron_memory_gib) == neuron_of(theirs), name
        assert mine.accelerators == mine.gpus + mine.neuron_devices, name
        assert mine.accelerator == ("gpu" if gpus else "trainium" if mine.neuron_devices else None), name
        assert mine.network_gbps == sum(c["PeakBandwidthInGbps"] for c in theirs["NetworkInfo"]["NetworkCards"]), name
        assert mine.local_storage_gb == theirs.get("InstanceStorageInfo", {}).get("TotalSizeInGB"), name
        assert mine.efa == theirs["NetworkInfo"]["EfaSupported"], name


def test_every_type_is_one_that_sagemaker_trains_on():
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    trains = set(model.shape_for("TrainingInstanceType").enum)
    assert set(catalog().types) <= trains
    wanted = "g4dn g5 g6 g6e p4d p4de p5 c5 c6i c7i m5 m6i r5 trn1 trn2"
    assert set(wanted.split()) <= set(catalog().families)
    assert not any(name.startswith("ml.inf") for name in trains), "Inferentia hosts can be trained on: add them"


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
        (
            "ml.g5.xlarge",
            "us-est-1",
            r"prices of region 'us-est-1' here \(only of us-east-1, .*did you mean 'us-east-1'",
        ),
        (
            "ml.g5.xlarge",
            "eu-west-1",
            r"'eu-west-1' here \(only of us-east-1, us-west-2\); `raytrain prices refresh --r",
        ),
        ("ml.c5.4xlarge", "us-west-2", r"no price of ml.c5.4xlarge in us-west-2 here \(only in us-east-1\)"),
        ("ml.p4de.24xlarge", "us-west-2", r"no price of ml.p4de.24xlarge in us-west-2 here; `raytrain prices refresh"),
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
  - {name: ml.x9.huge, vcpus: 512, memory_gib: 2048, gpus: 2, gpu: X}
prices:
  - {region: eu-west-1, type: ml.x9.huge, usd_per_hour: 12.5, source: my contract}
  - {region: us-east-1, type: ml.g5.xlarge, usd_per_hour: 1.0, source: my contract}
"""
    )
    known = catalog(path)
    mine = known.price("ml.x9.huge", "eu-west-1")
    assert (mine.usd_per_hour, known.source(mine).text) == (12.5, "my contract")
    assert known.type("ml.x9.huge").accelerator == "gpu"
    assert known.price("ml.g5.xlarge", "us-east-1").usd_per_hour == 1.0
    assert catalog().price("ml.g5.xlarge", "us-east-1").usd_per_hour == 1.408
    assert known.regions == ["us-east-1", "us-west-2", "eu-west-1"]


def test_a_source_keeps_its_prices_when_a_file_uses_its_name_for_another(tmp_path):
    path = prices_yaml(tmp_path / "prices.yaml", {("us-east-1", "ml.c5.xlarge"): 0.2}, "hand-kept-tables")
    known = catalog(path)
    assert known.source(known.price("ml.c5.xlarge", "us-east-1")).text == "unrelated hand-kept tables that agree"
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, "sources": {"hand-kept-tables": {"text": "our invoice"}}}))
    known = catalog(path)
    assert known.source(known.price("ml.c5.xlarge", "us-east-1")).text == "our invoice"
    assert known.source(known.price("ml.c5.9xlarge", "us-east-1")).text == "unrelated hand-kept tables that agree"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the prices in"),
        ("a: [", "are not YAML"),
        ("[]", "is not a file of prices: the file"),
        ("schema_version: 1\nprices: [{region: x, type: y, usd_per_hour: -1, source: z}]", r"prices.0.usd_per_hour"),
        (
            "schema_version: 1\nprices: [{region: x, type: y, usd_per_hour: .inf, source: z}]",
            r"\.inf is no finite number .*, line 2, column 45",
        ),
        ("schema_version: 2", "schema_version"),
        (
            "schema_version: 1\nprices: [{region: x, type: ml.g5.xlrge, usd_per_hour: 1, source: z}]",
            "prices the unknown instance type 'ml.g5.xlrge'; did you mean 'ml.g5.xlarge'",
        ),
        (
            "schema_version: 1\ntypes: [{name: ml.a.b, vcpus: 1, memory_gib: 1, accelerator: trainium}]",
            "types.0: Value error, accelerator, gpus and neuron_devices do not agree",
        ),
        (
            "schema_version: 1\ntypes: [{name: ml.a.b, vcpus: 1, memory_gib: 1, gpus: 1, accelerator: inferentia}]",
            "gpus and neuron_devices do not agree",
        ),
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


def test_the_file_of_the_documentation_is_read(tmp_path):
    text = (SNAPSHOT.parents[2] / "docs" / "prices.md").read_text()
    path = tmp_path / "prices.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    known = catalog(path)
    source = known.source(known.price("ml.g5.xlarge", "eu-west-1"))
    assert source == Source(text="our contract with AWS", date="2026-11-20")


def test_the_current_folders_file_comes_before_the_configurations_and_an_option_before_both(places):
    key = ("us-east-1", "ml.g5.xlarge")
    assert catalog().prices[key].usd_per_hour == 1.408
    prices_yaml(places / "config" / "raytrain" / "prices.yaml", {key: 3.0, ("eu-west-1", "ml.g5.xlarge"): 3.5})
    assert catalog().prices[key].usd_per_hour == 3.0
    prices_yaml(places / "here" / "prices.yaml", {key: 2.0})
    assert catalog().prices[key].usd_per_hour == 2.0
    assert ("eu-west-1", "ml.g5.xlarge") not in catalog().prices
    other = prices_yaml(places / "other.yaml", {("eu-west-1", "ml.g5.xlarge"): 4.0})
    known = catalog(other)
    assert known.price("ml.g5.xlarge", "eu-west-1").usd_per_hour == 4.0
    assert known.prices[key].usd_per_hour == 1.408


@given(
    *(
        st.dictionaries(st.tuples(st.sampled_from(REGIONS), st.sampled_from(TYPES)), st.floats(0.01, 100))
        for _ in range(2)
    )
)
@settings(max_examples=25, deadline=None)
def test_an_override_always_wins(tmp_path_factory, read, mine):
    """Over the cache, and the cache over the snapshot."""
    folder = tmp_path_factory.mktemp("layers")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(folder))
        changed.setenv("XDG_CONFIG_HOME", str(folder))
        below = catalog()
        cached(read)
        prices_yaml(folder / "raytrain" / "prices.yaml", mine)
        known = catalog()
    for key in {*below.prices, *read, *mine}:
        price = known.prices[key]
        expected = mine.get(key, read.get(key, below.prices[key].usd_per_hour if key in below.prices else None))
        assert price.usd_per_hour == expected
        source = known.source(price)
        if key in mine:
            assert source == Source(text="mine")
        elif key in read:
            assert source == Source(text="AWS", date="2026-11-01")
        else:
            assert source == below.source(below.prices[key])


def test_types_that_only_aws_knows_are_left_out_until_their_facts_are_given(places):
    cached({("us-east-1", "ml.new9.huge"): 5.0})
    assert ("us-east-1", "ml.new9.huge") not in catalog().prices
    facts = {"schema_version": 1, "types": [{"name": "ml.new9.huge", "vcpus": 8, "memory_gib": 16}]}
    (places / "here" / "prices.yaml").write_text(yaml.safe_dump(facts))
    assert catalog().price("ml.new9.huge", "us-east-1").usd_per_hour == 5.0


@pytest.mark.parametrize("content", [b"{", b'{"schema_version": 1, "prices": [{}]}', b"\xff\xfe", b""])
def test_a_damaged_cache_is_one_line_that_says_which_file_and_what_to_do(places, content):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(content)
    with pytest.raises(ConfigError, match="run `raytrain prices refresh` again, or delete the file") as caught:
        catalog()
    assert str(cache_file()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cache_is_replaced_whole_or_not_at_all(places, monkeypatch):
    key = ("us-east-1", "ml.g5.xlarge")
    cached({key: 7.0})
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ConfigError, match="cannot write the prices to .*prices.json: No space left"):
            cached({key: 8.0})
    assert catalog().prices[key].usd_per_hour == 7.0
    assert [path.name for path in cache_file().parent.iterdir()] == ["prices.json"]
