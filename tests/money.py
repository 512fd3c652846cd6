"""Records and profiles with prices, for the tests of what things cost."""

from __future__ import annotations

from typing import Any

import yaml

from raytrain.cost.profile import Figure, Profile
from raytrain.record.schema import CloudFacts, HostFacts, HostLoad, HostTimeline, Progress, RunRecord, Utilization

READ = (("read", 640), ("validation/read", 360))


def run_on(record: RunRecord, name: str, hosts: dict[str, tuple[str, int, int]], **changes: Any) -> RunRecord:
    """A record of `hosts`: instance type -> (group, hosts, GPUs a host), at `samples_per_s`."""
    samples_per_s, wait_share = changes.pop("samples_per_s", 64.0), changes.pop("wait_share", 0.5)
    first_step_s = changes.pop("first_step_s", 120.0)
    known = {"ml.g5.xlarge": 4, "ml.c5.4xlarge": 16, "ml.p4d.24xlarge": 96, "ml.c5.18xlarge": 72}
    read = record.stages[0].model_copy(update={"cpu_s": 0.0, "wall_s": 0.0})
    all_hosts, number = [], 0
    for kind, (group, count, gpus) in hosts.items():
        for each in range(1, count + 1):
            number += 1
            all_hosts.append(
                HostFacts(
                    name=f"{group}-{each}",
                    group=group,
                    cpus=known.get(kind, 2),
                    gpus=gpus,
                    instance_type=kind if kind.startswith("ml.") else None,
                    emulated=False,
                    is_head=number == 1,
                    samples_prepared=320,
                )
            )
    seconds = record.totals.samples / samples_per_s
    ranks = sum(host.gpus for host in all_hosts) or 1
    rank = record.ranks[0].model_copy(
        update={
            "wait_s": wait_share * seconds,
            "transfer_s": 0.0,
            "device": "cuda:0",
            "compute_s": (1 - wait_share) * seconds,
            "num_samples": record.totals.samples // int(ranks),
        }
    )
    at_s = [float(second) for second in range(120, 130)]
    busy = {"cpu_percent": [150.0] * 10, "memory_percent": [40.0] * 10}
    network = {"received_mbit_per_s": [8.0] * 10, "sent_mbit_per_s": [9.0] * 10}
    update = {
        "name": name,
        "hosts": all_hosts,
        "world_size": int(ranks),
        "cpu_slots": int(sum(host.cpus for host in all_hosts)),
        "totals": record.totals.model_copy(update={"samples_per_s": samples_per_s, "wait_share": wait_share}),
        "ranks": [rank.model_copy(update={"rank": number}) for number in range(int(ranks))],
        "startup": record.startup.model_copy(update={"first_step_s": first_step_s}),
        "stages": [*record.stages, *(read.model_copy(update={"name": n, "num_samples": c}) for n, c in READ)],
        "hardware": record.hardware.model_copy(update={"gpus": ["NVIDIA A10G"]}),
        "loads": [HostLoad(host=h.name, group=h.group, cpu_percent=Utilization(mean=150, max=390)) for h in all_hosts],
        "progress": Progress(at_s=at_s, samples_per_s=[samples_per_s] * 10, wait_share=[wait_share] * 10),
        "timelines": [HostTimeline(host=h.name, at_s=at_s, **busy, **network) for h in all_hosts],
    }
    return record.model_copy(update={**update, **changes})


def on_sagemaker(runs: list[RunRecord], kind: str = "sagemaker") -> list[RunRecord]:
    """The same runs in training jobs there, or in twins of them."""
    there = CloudFacts(
        kind=kind, job_name="x", arn="arn", status="Completed", failure=None, spot=False, training_s=1, billable_s=1,
        usd=None, groups=[], loads=[],
    )  # fmt: skip
    return [run.model_copy(update={"cloud": there}) for run in runs]


def profile(**changes: Any) -> Profile:
    """18 ms of a vCPU and 1/1200 s of an A10G for a sample."""
    tree = {
        "name": "toy",
        "job": {"name": "toy", "training": {"epochs": 10}},
        "source": "a test",
        "measured_at": "2026-01-01T00:00:00+00:00",
        "hardware": "none",
        "cpu_s_per_sample": {"c5": Figure.once(0.018)},
        "accelerator_s_per_sample": {"A10G": Figure.once(1 / 1200)},
        "wire_bytes_per_sample": Figure.once(150_528),
        "read_bytes_per_sample": Figure.once(100_000),
        "startup_s": Figure.once(120.0),
        "efficiency": Figure.once(0.97),
        "num_samples": 1_281_167,
        "epochs": 10,
        "on_sagemaker": True,
    }
    return Profile(**{**tree, **changes})


def prices_file(path, prices: dict[str, float], region: str = "here-1", types: list[dict] | None = None):
    """A file of prices of a made-up region."""
    listed = [
        {"region": region, "type": name, "usd_per_hour": usd, "source": "a test's"} for name, usd in prices.items()
    ]
    path.write_text(yaml.safe_dump({"schema_version": 1, "types": types or [], "prices": listed}))
    return path
