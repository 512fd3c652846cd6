"""`raytrain prices`: reading the AWS Price List over real HTTP, and what is shown of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from conftest import run_cli

from raytrain.cost.instances import REGIONS, cache_file, catalog
from raytrain.errors import CloudError, CloudUnreachable
from raytrain.sagemaker import pricing

EFFECTIVE = "2026-11-01"
SOURCE = "AWS Price List API, component Training, read by raytrain prices refresh"


def entry(name: str, usd: str, region: str = "us-east-1", **changes: Any) -> str:
    """An entry as the Price List writes it: JSON in a string, prices as strings. None drops an attribute."""
    unit, effective = changes.pop("unit", "Hrs"), changes.pop("effective", EFFECTIVE)
    attributes = {
        "servicecode": "AmazonSageMaker",
        "regionCode": region,
        "component": "Training",
        "instanceName": name,
        "instanceType": f"{name}-Training",
        "usagetype": f"USE1-Train:{name}",
        **changes,
    }
    dimension = {"unit": unit, "beginRange": "0", "endRange": "Inf", "pricePerUnit": {"USD": usd}}
    term = {"effectiveDate": f"{effective}T00:00:00Z", "priceDimensions": {"SKU.A.B": dimension}}
    known = {name: value for name, value in attributes.items() if value is not None}
    return json.dumps(
        {"product": {"productFamily": "ML Instance", "attributes": known}, "terms": {"OnDemand": {"SKU.A": term}}}
    )


@dataclass
class PriceList:
    """Stands in for AWS, because moto has no `pricing`: GetProducts of AWSPriceListService, in JSON 1.1, on loopback.

    Attributes:
        entries: what it lists.
        sent: requests as they came.
        refusals: (region or None for any, from which page, HTTP status, code), as long as they stand here.
    """

    entries: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[tuple[str | None, int, int, str]] = field(default_factory=list)
    page_size: int = 2
    url: str = ""

    def answer(self, headers: Any, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert headers["X-Amz-Target"] == "AWSPriceListService.GetProducts"
        assert headers["Content-Type"] == "application/x-amz-json-1.1"
        assert "/us-east-1/pricing/aws4_request" in headers["Authorization"]
        self.sent.append(request)
        assert {f["Type"] for f in request["Filters"]} == {"TERM_MATCH"}
        wanted = {f["Field"]: f["Value"] for f in request["Filters"]}
        begin = int(request.get("NextToken", 0))
        for region, page, status, code in self.refusals:
            if region in (None, wanted["regionCode"]) and begin >= page * self.page_size:
                return status, {"__type": code, "message": "because"}
        found = [text for text in self.entries if wanted.items() <= _attributes(text).items()]
        end = begin + min(self.page_size, request["MaxResults"])
        tree = {"FormatVersion": "aws_v1", "PriceList": found[begin:end]}
        return 200, tree | ({"NextToken": str(end)} if end < len(found) else {})


def _attributes(text: str) -> dict[str, str]:
    """Of an entry; one that a test has damaged matches every filter."""
    try:
        return json.loads(text)["product"]["attributes"]
    except (ValueError, KeyError):
        return {"regionCode": "us-east-1", "component": "Training"}


@pytest.fixture
def price_list(monkeypatch, tmp_path) -> Iterator[PriceList]:
    listed = PriceList()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, tree = listed.answer(self.headers, body)
            content = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    listed.url = f"http://127.0.0.1:{server.server_port}"
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    changes = {
        "AWS_ENDPOINT_URL_PRICING": listed.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    yield listed
    server.shutdown()
    server.server_close()


def line_of(result) -> str:
    """The one line that an error is."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("raytrain: ")]
    return line


def test_a_refresh_reads_every_page_of_every_region(price_list, cli):
    names = ["ml.g5.xlarge", "ml.g5.2xlarge", "ml.c5.xlarge", "ml.m5.xlarge", "ml.p5.48xlarge"]
    for number, region in enumerate(REGIONS):
        price_list.entries += [entry(name, f"{number + 1}.2500000000", region) for name in names]
    result = cli("prices", "refresh", "--json")
    assert result.returncode == 0, result.stderr
    read = {"prices": 5, "skipped": 0, "effective": EFFECTIVE}
    assert json.loads(result.stdout) == {"file": str(cache_file()), "regions": dict.fromkeys(REGIONS, read)}
    assert len(price_list.sent) == len(REGIONS) * 3, "three pages a region"
    assert {request["ServiceCode"] for request in price_list.sent} == {"AmazonSageMaker"}
    known = catalog()
    price = known.price("ml.p5.48xlarge", "eu-west-1")
    assert price.usd_per_hour == 3.25
    assert (known.source(price).text, known.source(price).date) == (SOURCE, EFFECTIVE)
    shown = cli("prices", "show", "--region", "eu-west-1", "--families", "p5")
    assert "3.2500 a" in shown.stdout
    assert f"a: {SOURCE} ({EFFECTIVE})" in shown.stdout
    assert known.price("ml.g6.xlarge", "us-west-2").usd_per_hour == 1.127, "what AWS does not list is of the snapshot"


def test_what_is_no_hourly_price_of_a_training_instance_is_skipped_and_counted(price_list, cli):
    good = [entry("ml.c5.xlarge", "0.2040000000"), entry("ml.m5.xlarge", "0.23", instanceName=None)]
    others = [
        "not JSON",
        '{"product": {}}',
        entry("ml.g5.xlarge", "0.9", usagetype="USE1-TrainingPlanUpfrontFee:ml.g5.xlarge"),
        entry("ml.g5.xlarge", "0.9", usagetype="USE1-Host:ml.g5.xlarge"),
        entry("ml.g5.xlarge", "0.9", usagetype="USE1-Train:ml.g5.2xlarge"),
        entry("ml.g5.xlarge", "0.9", usagetype="USE1-Train:ml.g5.xlarge-FreeTier"),
        entry("ml.g5.xlarge", "0.9", usagetype="USE1-Train:ml.g5.xlarge:Free", instanceName=None),
        entry("ml.g5.xlarge", "0.9", unit="Quantity"),
        entry("ml.g5.xlarge", "0.0000000000"),
        entry("ml.g5.xlarge", "inf"),
        entry("ml.g5.xlarge", "cheap"),
        entry("ml.g6.xlarge", "1.0"),
        entry("ml.g6.xlarge", "2.0"),  # two prices of one type: neither
    ]
    price_list.entries = [*good, *others, entry("ml.g5.xlarge", "0.1", component="Hosting")]
    result = cli("prices", "refresh", "--region", "us-east-1")
    assert result.returncode == 0, result.stderr
    first, path = result.stdout.splitlines()
    assert first == f"us-east-1: 2 prices, in force since {EFFECTIVE}; {len(others)} other entries skipped"
    assert path == str(cache_file())
    known = catalog()
    assert known.price("ml.c5.xlarge", "us-east-1").usd_per_hour == 0.204
    assert known.price("ml.m5.xlarge", "us-east-1").usd_per_hour == 0.23
    assert known.price("ml.g5.xlarge", "us-east-1").usd_per_hour == 1.408, "the snapshot's"


def test_the_same_price_twice_is_taken_with_its_latest_date(price_list):
    price_list.entries = [entry("ml.c5.xlarge", "0.3", effective=date) for date in ("2026-10-01", "2026-11-01")]
    _, [read] = pricing.refresh(["us-east-1"])
    assert read.rates == (pricing.Rate("ml.c5.xlarge", 0.3, "2026-11-01"),)


def test_a_refresh_of_one_region_keeps_what_was_read_of_others(price_list):
    price_list.entries = [
        entry("ml.g5.xlarge", "9.0", "eu-west-1", effective="2026-10-01"),
        entry("ml.g5.xlarge", "1.0"),
    ]
    pricing.refresh(["eu-west-1", "us-east-1"])
    price_list.entries = [entry("ml.c5.xlarge", "2.0")]
    pricing.refresh(["us-east-1"])
    known = catalog()
    kept = known.price("ml.g5.xlarge", "eu-west-1")
    assert (kept.usd_per_hour, known.source(kept).date) == (9.0, "2026-10-01")
    assert known.price("ml.c5.xlarge", "us-east-1").usd_per_hour == 2.0
    assert known.price("ml.g5.xlarge", "us-east-1").usd_per_hour == 1.408, "no longer listed: the snapshot's again"


@pytest.mark.parametrize("page", [0, 1])
def test_a_throttle_in_the_middle_loses_nothing(price_list, page):
    names = ["ml.g5.xlarge", "ml.c5.xlarge", "ml.m5.xlarge"]
    price_list.entries = [entry(name, "5.0", region) for region in REGIONS for name in names]
    pricing.refresh()
    before = cache_file().read_bytes()
    price_list.entries = [text.replace("5.0", "6.0") for text in price_list.entries]
    price_list.refusals = [("eu-west-1", page, 400, "ThrottlingException")]
    with pytest.raises(CloudUnreachable, match="reading the prices of eu-west-1: AWS goes on throttling"):
        pricing.refresh()
    assert cache_file().read_bytes() == before
    assert [path.name for path in cache_file().parent.iterdir()] == ["prices.json"]
    price_list.refusals = []
    pricing.refresh()
    assert catalog().price("ml.g5.xlarge", "eu-west-1").usd_per_hour == 6.0


def test_a_region_without_prices_is_one_line_and_the_earlier_cache_stays(price_list, cli):
    price_list.entries = [entry("ml.g5.xlarge", "5.0")]
    pricing.refresh(["us-east-1"])
    before = cache_file().read_bytes()
    result = cli("prices", "refresh", "--region", "us-east-1", "--region", "eu-west1")
    assert "Price List has no training prices of region 'eu-west1'; did you mean 'eu-west-1'?" in line_of(result)
    assert "of region 'eu-west-1'; the prices read before are kept" in line_of(
        cli("prices", "refresh", "--region", "eu-west-1")
    )
    assert cache_file().read_bytes() == before


def test_a_damaged_cache_stops_everything_but_a_refresh(price_list, cli):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text('{"schema_version": 1, "pri')
    assert "run `raytrain prices refresh` again" in line_of(cli("prices"))
    price_list.entries = [entry("ml.g5.xlarge", "5.0")]
    assert cli("prices", "refresh", "--region", "us-east-1").returncode == 0
    assert "5.0000" in cli("prices").stdout


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (400, "AccessDeniedException", CloudError, "reading the prices of us-east-1: not allowed: because"),
        (400, "ExpiredTokenException", CloudError, "the AWS credentials have expired; log in again"),
        (400, "InvalidParameterException", CloudError, "InvalidParameterException: because"),
        (500, "InternalErrorException", CloudUnreachable, "InternalErrorException: because"),
    ],
)
def test_a_refusal_is_one_line(price_list, status, code, kind, message):
    price_list.refusals = [(None, 0, status, code)]
    with pytest.raises(kind, match=message) as caught:
        pricing.refresh(["us-east-1"])
    assert "\n" not in str(caught.value)
    assert not cache_file().exists()


def test_without_credentials_or_a_connection_it_says_so(price_list, cli, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:9")
    assert "AWS cannot be reached" in line_of(cli("prices", "refresh"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "no AWS credentials found" in line_of(cli("prices", "refresh"))


def test_show_is_what_prices_does_by_itself(cli):
    plain, named = cli("prices"), cli("prices", "show")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == named.stdout
    assert cli("prices", "--region", "us-west-2").stdout == cli("prices", "show", "--region", "us-west-2").stdout
    lines = plain.stdout.splitlines()
    [row] = [line for line in lines if line.startswith("ml.c5.4xlarge ")]
    assert row.split() == ["ml.c5.4xlarge", "16", "32", "-", "10", "0.8160", "a", "-", "0.0510"]
    [row] = [line for line in lines if line.startswith("ml.g5.12xlarge ")]
    assert "4 x A10G, 22.4 GiB" in row
    assert row.endswith(" -"), "nobody takes a GPU host for its CPUs"
    assert "a: unrelated hand-kept tables that agree (undated)" in lines
    assert lines[-1].startswith("no prices of eu-west-1, ap-northeast-1: `raytrain prices refresh`")
    assert not any("p4de" in line for line in lines)
    assert "Did you mean 'show'" in line_of(cli("prices", "shwo"))


def test_every_price_that_is_shown_has_its_source(cli, tmp_path):
    mine = {"region": "eu-west-1", "type": "ml.c5.xlarge", "usd_per_hour": 0.25, "source": "my contract"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, "prices": [mine]}))
    tree = json.loads(cli("prices", "--families", "ml.g5, c5", "--prices", path, "--json").stdout)
    assert tree["regions"] == ["us-east-1", "us-west-2", "eu-west-1"]
    assert {kind["name"].split(".")[1] for kind in tree["types"]} == {"g5", "c5"}
    prices = [price for kind in tree["types"] for price in kind["prices"].values()]
    assert prices
    assert all(price["source"] and "date" in price for price in prices)
    [found] = [kind["prices"]["eu-west-1"] for kind in tree["types"] if kind["name"] == "ml.c5.xlarge"]
    assert found == {"usd_per_hour": 0.25, "usd_per_vcpu_hour": 0.0625, "source": "my contract", "date": None}
    shown = cli("prices", "--families", "c5", "--prices", path).stdout
    assert "0.0510 to 0.0625" in shown
    assert "my contract (undated)" in shown


def test_types_without_a_price_are_shown_on_request(cli):
    tree = json.loads(cli("prices", "--families", "trn1,trn2", "--all", "--json").stdout)
    assert {kind["accelerator"] for kind in tree["types"]} == {"trainium"}
    assert "16 x Trainium2, 96 GiB" in cli("prices", "--families", "trn2", "--all").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--families", "g55"], "unknown instance family 'g55'; did you mean 'g5'?"),
        (["--families", ""], "unknown instance family ''"),
        (["--families", "p4de"], "there is no price of p4de in us-east-1, us-west-2 here; --all shows"),
        (["--region", "eu-west1"], "no prices of region 'eu-west1' here"),
        (["--prices", "/no/such.yaml"], "cannot read the prices in /no/such.yaml"),
    ],
)
def test_a_wrong_word_is_one_line(cli, words, message):
    assert message in line_of(cli("prices", *words))


@pytest.mark.process
def test_a_process_of_its_own_reads_and_shows(price_list, tmp_path):
    price_list.entries = [entry("ml.g5.xlarge", "5.5", "eu-west-1")]
    result = run_cli("prices", "refresh", "--region", "eu-west-1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run_cli("prices", "--region", "eu-west-1", cwd=tmp_path)
    assert "5.5000 a" in result.stdout, result.stderr
