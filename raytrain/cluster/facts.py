"""What the record of any run says of its end, of the driver's machine and of the hosts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from raytrain.cluster import hardware
from raytrain.cluster.topology import Topology
from raytrain.config.masking import masked_text
from raytrain.errors import RaytrainError, Stopped
from raytrain.record.schema import Hardware, HostFacts


def ended(error: RaytrainError | None) -> dict[str, Any]:
    """`status` and `error`."""
    status = "finished" if error is None else "stopped" if isinstance(error, Stopped) else "failed"
    return {"status": status, "error": masked_text(str(error)) if error else None}


def time_of_day(at: float) -> str:
    """Of time.time(), as records have it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def this_machine() -> Hardware:
    return Hardware(
        cpu_model=hardware.cpu_model(),
        cpu_cores=hardware.usable_cpus(),
        memory_bytes=hardware.memory_bytes(),
        platform=hardware.platform_name(),
        gpus=hardware.gpu_names(),
    )


def hosts_of(topology: Topology, prepared: Mapping[str, int]) -> list[HostFacts]:
    """
    Args:
        prepared: samples, by Ray node id.
    """
    return [
        HostFacts(
            name=host.name,
            group=host.group,
            cpus=host.cpus,
            gpus=host.gpus,
            instance_type=host.instance_type,
            emulated=host.emulated,
            is_head=host.is_head,
            samples_prepared=prepared.get(host.node_id, 0),
        )
        for host in topology.hosts
    ]
