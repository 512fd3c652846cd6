"""The catalog's layers, lists and files, in small."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

import pytest

from raytrain.cost.instances import (
    Catalog,
    InstanceType,
    Price,
    PriceFile,
    Source,
    cache_file,
    catalog,
    own_file,
    read_cache,
    write_cache,
)
from raytrain.errors import ConfigError


def host(name: str, vcpus: int = 1, **facts) -> InstanceType:
    return InstanceType(name=name, vcpus=vcpus, memory_gib=1, **facts)


def price(name: str, region: str, usd: float = 1.0, source: str = "s") -> Price:
    return Price(region=region, type=name, usd_per_hour=usd, source=source)


def made(types, prices=()) -> Catalog:
    return Catalog({t.name: t for t in types}, {(p.region, p.type): p for p in prices}, {"s": Source(text="s")})


@pytest.fixture
def places(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "deep" / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_what_is_not_said_of_a_type_is_nothing():
    plain = host("ml.a.b")
    assert (plain.gpus, plain.gpu, plain.gpu_memory_gib, plain.accelerator, plain.accelerators) == (
        0,
        None,
        None,
        None,
        0,
    )
    assert (plain.neuron_devices, plain.neuron_device, plain.neuron_memory_gib) == (0, None, None)
    assert (plain.network_gbps, plain.local_storage_gb, plain.efa) == (None, None, False)
    assert plain.family == "a"


def test_facts_and_prices_do_not_change():
    for entry, name in ((host("ml.a.b"), "vcpus"), (price("ml.a.b", "x"), "usd_per_hour")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(entry, name, 9)


def test_kinds_of_accelerators():
    assert (host("ml.a.b", gpus=2).accelerator, host("ml.a.b", gpus=2).accelerators) == ("gpu", 2)
    assert host("ml.a.b", gpus=1, accelerator="gpu").accelerator == "gpu"
    assert host("ml.a.b", gpus=0).accelerator is None
    for kind in ("trainium", "inferentia"):
        assert host("ml.a.b", neuron_devices=3, accelerator=kind).accelerators == 3
    for wrong in (
        {"neuron_devices": 1},
        {"neuron_devices": 1, "gpus": 1},
        {"neuron_devices": 1, "accelerator": "gpu"},
        {"accelerator": "gpu"},
        {"accelerator": "inferentia"},
        {"gpus": 1, "accelerator": None},
    ):
        with pytest.raises(ValueError, match="accelerator, gpus and neuron_devices do not agree"):
            host("ml.a.b", **wrong)
    with pytest.raises(ValueError, match="should be a valid dictionary or instance"):
        PriceFile.model_validate({"schema_version": 1, "types": ["ml.a.b"]})


def test_a_sources_day_may_be_one_of_yaml():
    assert Source(text="x", date=date(2026, 11, 20)) == Source(text="x", date="2026-11-20")
    assert (Source(text="x").date, Source(text="x", date="2026-11").date) == (None, "2026-11")


def test_regions_of_the_snapshot_come_first_and_then_the_others_by_name():
    names = ["us-west-2", "zz-1", "ap-northeast-1", "aa-1"]
    known = made([host("ml.a.b")], [price("ml.a.b", region) for region in names])
    assert known.regions == ["us-west-2", "ap-northeast-1", "aa-1", "zz-1"]


def test_families_and_siblings():
    types = [host("ml.b.z", 8), host("ml.a.x", 2), host("ml.b.y", 8), host("ml.b.x", 4)]
    assert made(types).families == ["b", "a"]
    assert [t.name for t in made(types).siblings("ml.b.y")] == ["ml.b.x", "ml.b.y", "ml.b.z"]
    with pytest.raises(ConfigError, match="unknown instance type 'ml.b.w'"):
        made(types).siblings("ml.b.w")


def test_a_price_that_is_missing_says_where_there_is_one():
    known = made(
        [host("ml.a.b"), host("ml.a.c"), host("ml.a.d")],
        [price("ml.a.b", "us-east-1"), price("ml.a.c", "eu-west-1"), price("ml.a.c", "us-west-2")],
    )
    with pytest.raises(ConfigError) as caught:
        known.price("ml.a.c", "us-east-1")
    assert str(caught.value) == (
        "there is no price of ml.a.c in us-east-1 here (only in us-west-2, eu-west-1); `raytrain prices refresh "
        "--region us-east-1` reads them from AWS, prices.yaml or --prices FILE adds your own, and --no-prices launches "
        "without"
    )
    with pytest.raises(ConfigError, match="there is no price of ml.a.d in us-east-1 here; `raytrain"):
        known.price("ml.a.d", "us-east-1")
    with pytest.raises(ConfigError, match=r"'ap-northeast-1' here \(only of us-east-1, us-west-2, eu-west-1\); `ray"):
        known.price("ml.a.b", "ap-northeast-1")
    with pytest.raises(ConfigError, match=r"eu-west-1\); did you mean 'ap-northeast-1'\?; `raytrain"):
        known.price("ml.a.b", "ap-northeast-2")
    with pytest.raises(ConfigError, match="unknown instance type 'ml.a.e'.*; a new one can be added to prices.yaml"):
        known.price("ml.a.e", "mars-1")
    assert known.source(known.price("ml.a.b", "us-east-1")) == Source(text="s")


def test_the_cache_is_written_in_a_folder_of_its_own_and_read(places):
    assert read_cache() is None
    content = [price("ml.g5.xlarge", "us-east-1", 2.0)]
    for _ in range(2):
        assert write_cache(iter(content), {"s": Source(text="Größe")}) == cache_file()
    assert cache_file() == places / "deep" / "cache" / "raytrain" / "prices.json"
    text = cache_file().read_text(encoding="utf-8")
    assert text.startswith('{\n "schema_version": 1,\n') and text.endswith("}\n")
    assert json.loads(text)["sources"] == {"s": {"text": "Größe", "date": None}}
    assert read_cache().prices == tuple(content)
    assert os.listdir(cache_file().parent) == ["prices.json"]


def test_a_draft_lies_beside_the_cache_and_is_gone_even_if_it_was_taken_away(places, monkeypatch):
    """Beside it, so that putting it into its place is one step."""
    seen = []

    def broken(draft, path):
        seen.append((os.path.dirname(draft), draft[-5:], Path(draft).read_text(encoding="utf-8")[-2:]))
        os.unlink(draft)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(ConfigError, match="cannot write the prices to .*: No space left on device"):
        write_cache([], {})
    assert seen == [(str(cache_file().parent), ".part", "}\n")]


def test_a_file_that_cannot_be_parsed_is_named_by_its_form(tmp_path):
    for name, form in (("a.json", "JSON"), ("a.yaml", "YAML"), ("a.txt", "YAML")):
        (tmp_path / name).write_text("{]" + " x" * 300)
        with pytest.raises(ConfigError, match=f"the prices in .*{name} are not {form}: ") as caught:
            catalog(tmp_path / name)
        message = str(caught.value)
        assert "\n" not in message and len(message.split(f"not {form}: ")[1]) <= 201


def test_a_folder_is_no_file_of_the_users(places):
    assert own_file() is None
    (places / "here" / "prices.yaml").mkdir()
    assert own_file() is None
    (places / "config" / "raytrain").mkdir(parents=True)
    (places / "config" / "raytrain" / "prices.yaml").write_text("schema_version: 1")
    assert own_file() == places / "config" / "raytrain" / "prices.yaml"
    (places / "here" / "prices.yaml").rmdir()
    (places / "here" / "prices.yaml").write_text("schema_version: 1")
    assert str(own_file()) == "prices.yaml"


def test_a_source_of_an_earlier_layer_is_told_apart_by_the_files_name(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(
        "schema_version: 1\n"
        "sources: {ec2: {text: mine}, other: {text: second}}\n"
        "prices:\n"
        "  - {region: us-east-1, type: ml.g5.xlarge, usd_per_hour: 2, source: ec2}\n"
        "  - {region: us-west-2, type: ml.g5.xlarge, usd_per_hour: 3, source: other}\n"
        "  - {region: eu-west-1, type: ml.g5.xlarge, usd_per_hour: 4, source: unsaid}\n"
    )
    below, known = catalog(), catalog(path)
    own = known.price("ml.g5.xlarge", "us-east-1")
    assert (own.source, known.source(own)) == (f"ec2 ({path})", Source(text="mine"))
    assert known.sources["ec2"] == below.sources["ec2"]
    assert known.source(known.price("ml.g5.xlarge", "us-west-2")) == Source(text="second")
    assert known.source(known.price("ml.g5.xlarge", "eu-west-1")) == Source(text="unsaid")
    assert known.types == below.types
