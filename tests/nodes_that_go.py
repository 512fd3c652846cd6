"""Emulated hosts that are drained, as an autoscaler or `ray drain-node` does it."""

from __future__ import annotations

import time
from typing import Any

from raytrain.cluster.local import RunningCluster
from raytrain.cluster.topology import EMULATED_GPU, EMULATED_LABEL, GROUP_LABEL, HOST_LABEL

STORE_BYTES = 100 << 20


def add_node(running: RunningCluster, name: str, group: str, cpus: int = 1, gpus: int = 0) -> Any:
    """A host that comes later; its `node_id` is Ray's."""
    labels = {GROUP_LABEL: group, HOST_LABEL: name, EMULATED_LABEL: "true"}
    return running._nodes.cluster.add_node(
        num_cpus=cpus,
        num_gpus=0,
        resources={EMULATED_GPU: gpus} if gpus else {},
        labels=labels,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
    )


def kill_node(running: RunningCluster, node: Any) -> None:
    """As by a power cut."""
    running._nodes.cluster.remove_node(node, allow_graceful=False)


def drain(node_id: str, within_s: float = 60.0) -> None:
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    preemption = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = int((time.time() + within_s) * 1000)
    accepted, why = global_worker.gcs_client.drain_node(node_id, preemption, "a test", deadline_ms)
    assert accepted, why
