"""From a job that has ended to its run record: what the run wrote, what SageMaker says of the job, and how busy its
hosts were."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from raytrain.cost.instances import Catalog, catalog
from raytrain.errors import CloudError, ConfigError
from raytrain.record.schema import BilledGroup, CloudFacts, HostLoad, RunRecord, Utilization, parse_record
from raytrain.sagemaker import aws
from raytrain.sagemaker.request import groups_of
from raytrain.sagemaker.submit import describe
from raytrain.sagemaker.training_jobs import ENDED, billable_s

NAMESPACE = "/aws/sagemaker/TrainingJobs"
METRICS = {
    "cpu_percent": "CPUUtilization",
    "memory_percent": "MemoryUtilization",
    "disk_percent": "DiskUtilization",
    "gpu_percent": "GPUUtilization",
    "gpu_memory_percent": "GPUMemoryUtilization",
}
PERIOD_S = 60  # as often as SageMaker writes them
QUERIES_A_CALL = 500  # of GetMetricData
RECORD = "record.json"


def gather_twin(folder: Path) -> RunRecord:
    """Of a twin that has ended.

    Raises:
        ConfigError: there is none, or its run left no record.
    """
    try:
        described = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is not the folder of a twin that has ended ({type(error).__name__})") from None
    archive = folder / "output.tar.gz"
    content = archive.read_bytes() if archive.is_file() else None
    own = _own_record(content, described, str(archive))
    loads = [
        HostLoad(
            host=load["Host"],
            group=described["Twin"]["Groups"][load["Host"]],
            cpu_percent=Utilization(**load["CPUUtilization"]),
        )
        for load in described["Twin"]["Loads"]
    ]
    return own.model_copy(update={"cloud": _facts("twin", described, loads, None, "")})


def gather(name: str, known: aws.Account, prices: Path | None = None, *, priced: bool = True) -> RunRecord:
    """Of a training job that has ended.

    Args:
        prices: a file of the user's, besides the snapshot.
        priced: False to go without prices.

    Raises:
        CloudError: there is no such job, it has not ended, or AWS refuses.
        ConfigError: its run left no record, or a price is unknown.
    """
    described = describe(name, known)
    if described["TrainingJobStatus"] not in ENDED:
        raise CloudError(
            f"the job {name} has not ended: {described['TrainingJobStatus']}; raytrain logs {name} --follow"
        )
    own = _own_record(*_output(described, known))
    groups = {host.name: host.group for host in own.hosts}
    return own.model_copy(
        update={
            "cloud": _facts(
                "sagemaker",
                described,
                _loads(described, groups, known),
                catalog(prices) if priced else None,
                known.region,
            )
        }
    )


def _output(described: dict[str, Any], known: aws.Account) -> tuple[bytes | None, dict[str, Any], str]:
    from botocore.exceptions import ClientError

    where = described["OutputDataConfig"]["S3OutputPath"].rstrip("/")
    uri = f"{where}/{described['TrainingJobName']}/output/output.tar.gz"
    bucket, key = aws.split(uri)
    with aws.explained(f"fetching {uri}"):
        try:
            return known.s3.get_object(Bucket=bucket, Key=key)["Body"].read(), described, uri
        except ClientError as error:
            if aws.code_of(error) not in aws.MISSING:
                raise
            return None, described, uri


def _own_record(archive: bytes | None, described: dict[str, Any], where: str) -> RunRecord:
    """The run's record, read out of the archive without unpacking it.

    Raises:
        ConfigError: there is none.
    """
    status = described["TrainingJobStatus"]
    if archive is not None:
        try:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
                members = [m for m in tar if m.isfile() and m.name.removeprefix("./") == RECORD]
                if members:
                    text = tar.extractfile(members[0]).read().decode("utf-8", "replace")
                    return parse_record(text, f"{RECORD} in {where}")
        except (tarfile.TarError, OSError, EOFError, zlib.error):
            raise ConfigError(f"{where} is not an archive, or was cut off") from None
    reason = f": {described['FailureReason']}" if described.get("FailureReason") else ""
    raise ConfigError(
        f"the job left no run record in {where}; it ended as {status} before training began, or ran something else"
        f"{reason}; see raytrain logs {described['TrainingJobName']}"
    )


def _facts(
    kind: str, described: dict[str, Any], loads: list[HostLoad], prices: Catalog | None, region: str
) -> CloudFacts:
    seconds = billable_s(described)
    groups = []
    for group in groups_of(described):
        price = prices.price(group.instance_type, region) if prices else None
        source = prices.source(price) if prices else None
        groups.append(
            BilledGroup(
                name=group.name,
                instance_type=group.instance_type,
                hosts=group.hosts,
                billable_s=seconds[group.name],
                usd_per_hour=price.usd_per_hour if price else None,
                usd=price.usd_per_hour * seconds[group.name] / 3600 if price else None,
                price_source=source.text if source else None,
                price_date=source.date if source else None,
            )
        )
    return CloudFacts(
        kind=kind,
        job_name=described["TrainingJobName"],
        arn=described["TrainingJobArn"],
        status=described["TrainingJobStatus"],
        failure=described.get("FailureReason"),
        spot=bool(described.get("EnableManagedSpotTraining")),
        training_s=described.get("TrainingTimeInSeconds") or 0,
        billable_s=sum(seconds.values()),
        usd=sum(group.usd for group in groups) if prices else None,
        groups=groups,
        loads=loads,
    )


def _loads(described: dict[str, Any], groups: Mapping[str, str], known: aws.Account) -> list[HostLoad]:
    """What CloudWatch has of every host; SageMaker numbers them from algo-1."""
    names = [f"algo-{n}" for n in range(1, sum(g.hosts for g in groups_of(described)) + 1)]
    asked = [(host, field, stat) for host in names for field in METRICS for stat in ("Average", "Maximum")]
    values: dict[tuple[str, str, str], list[float]] = {}
    begin, end = described.get("TrainingStartTime"), described.get("TrainingEndTime")
    if begin is None or end is None:
        return []
    client = known.client("cloudwatch")
    with aws.explained("reading CloudWatch"):
        for first in range(0, len(asked), QUERIES_A_CALL):
            part = asked[first : first + QUERIES_A_CALL]
            queries = [_query(f"q{n}", described["TrainingJobName"], *key) for n, key in enumerate(part)]
            pages = client.get_paginator("get_metric_data").paginate(
                MetricDataQueries=queries,
                StartTime=begin - timedelta(seconds=PERIOD_S),
                EndTime=end + timedelta(seconds=PERIOD_S),
            )
            for page in pages:
                for result in page["MetricDataResults"]:
                    values.setdefault(part[int(result["Id"][1:])], []).extend(result["Values"])
    found = []
    for host in names:
        busy = {}
        for field in METRICS:
            means, peaks = values.get((host, field, "Average")), values.get((host, field, "Maximum"))
            busy[field] = Utilization(mean=sum(means) / len(means), max=max(peaks)) if means and peaks else None
        found.append(HostLoad(host=host, group=groups.get(host), **busy))
    return found


def _query(number: str, job: str, host: str, field: str, stat: str) -> dict[str, Any]:
    metric = {
        "Namespace": NAMESPACE,
        "MetricName": METRICS[field],
        "Dimensions": [{"Name": "Host", "Value": f"{job}/{host}"}],
    }
    return {"Id": number, "MetricStat": {"Metric": metric, "Period": PERIOD_S, "Stat": stat}}
