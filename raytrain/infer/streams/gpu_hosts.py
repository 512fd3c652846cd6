"""What hosts with GPUs are asked before streams begin there, and NVIDIA's daemon while they are."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytrain.cluster.topology import Host
from raytrain.errors import RaytrainError
from raytrain.infer.streams.mps import Mps
from raytrain.infer.streams.places import Places
from raytrain.ray_internals.devices import find_nvml


def gpu_bytes(public: bool) -> int | None:
    """Memory of the smallest GPU of this host; None where its driver does not tell."""
    nvml = find_nvml(public)
    if nvml is None:
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
        return min((int(nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=None)
    except nvml.NVMLError:
        return None


class MpsHost:
    """An actor that has the daemon of its host; it ends with the actor's `stop`."""

    def __init__(self) -> None:
        self._mps = Mps(Path(tempfile.mkdtemp(prefix="raytrain-mps-")))

    def start(self) -> dict[str, str]:
        """Returns what streams must start with.

        Raises:
            ConfigError: it is not installed.
            ClusterError: it does not start.
        """
        self._mps.start()
        return self._mps.environment

    def stop(self) -> None:
        self._mps.stop()


def real_gpu_hosts(places: Places) -> list[Host]:
    """Each once."""
    return list(dict.fromkeys(each.host for each in places.streams if each.device == "cuda"))


@contextlib.contextmanager
def with_mps(places: Places, wanted: bool) -> Iterator[Places]:
    """The same places, with the daemon on every host whose GPUs are shared so, while they are used.

    Raises:
        ConfigError: it is not installed.
        ClusterError: it does not start.
    """
    import ray

    hosts = real_gpu_hosts(places) if wanted else []
    actor: Any = ray.remote(MpsHost)
    options = {"num_cpus": 0, "max_restarts": 0}
    actors = [actor.options(**options, label_selector=here(host)).remote() for host in hosts]
    try:
        started = dict(zip(hosts, asked([each.start.remote() for each in actors]), strict=True))
        streams = (replace(s, variables={**s.variables, **started.get(s.host, {})}) for s in places.streams)
        yield replace(places, streams=tuple(streams))
    finally:
        for each in actors:
            with contextlib.suppress(ray.exceptions.RayError, RaytrainError):  # its host may be gone
                ray.get(each.stop.remote())
            ray.kill(each)


def here(host: Host) -> dict[str, str]:
    """A label selector of a host."""
    return {"ray.io/node-id": host.node_id}


def asked(references: Sequence[Any]) -> list[Any]:
    """What hosts answer.

    Raises:
        RaytrainError: what one of them raised.
    """
    import ray

    try:
        return list(ray.get(list(references)))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaytrainError):
            raise type(error.cause)(*error.cause.args) from None
        raise
