"""A cluster of this machine alone: Ray and its ranks on the loopback interface, where no other machine reaches them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import cache
from typing import Any

from raytrain.ray_internals.contract import Contract, standing_in
from raytrain.ray_internals.train import seeing

LOOPBACK = "127.0.0.1"
_OPEN: list[Any] = []  # the store of this process, which ends when nobody holds it

OFF_THE_NETWORK = Contract(
    does="keeping a cluster of this machine off the network",
    needs=(
        "ray._private.services:resolve_ip_for_localhost with host",
        "ray._private.parameter:RayParams with node_ip_address",
    ),
    looked_up={"ray._private.services:resolve_ip_for_localhost": "ray._private.services"},
    buys="GCS, raylets and workers of a run on one machine listen on 127.0.0.1 and nowhere else; by itself Ray "
    "connects to the machine's own address, where such nodes do not answer",
    instead="they listen on all interfaces",
)


@contextlib.contextmanager
def localhost_kept(public: bool) -> Iterator[None]:
    """Meanwhile Ray takes 127.0.0.1 for what it is, and not for the address that other machines know this one by."""
    if not OFF_THE_NETWORK.holds(public):
        yield
        return
    from ray._private import services

    with standing_in((services, "resolve_ip_for_localhost", lambda host: host)):
        yield


@cache
def store_config() -> type[Any]:
    """A TorchConfig whose ranks meet at `place_of_store`; pickled, it is Ray's own."""
    from ray.train.torch.config import TorchConfig, _TorchBackend

    class StoreBackend(_TorchBackend):
        on_start = seeing(_TorchBackend.on_start, get_address_and_port=place_of_store)

    class StoreConfig(TorchConfig):
        backend_cls = StoreBackend

        def __reduce__(self) -> tuple[Any, ...]:
            return TorchConfig, (self.backend, self.init_method, self.timeout_s)

    return StoreConfig


STORE = Contract(
    does="keeping the place where ranks meet off the network",
    needs=("ray.train.torch.config:_TorchBackend.on_start", "ray.train._internal.utils:get_address_and_port"),
    looked_up={"ray.train.torch.config:get_address_and_port": "ray.train.torch.config"},
    proof=store_config,
    buys="torch's store of the ranks of one machine listens on 127.0.0.1 alone, and its port is never another's",
    instead="torch's store listens on all interfaces, and asks for no token",
)


def torch_config(backend: str, public: bool) -> Any:
    """How Ray Train connects the ranks: a TorchConfig."""
    if STORE.holds(public):
        return store_config()(backend=backend)
    from ray.train.torch import TorchConfig

    return TorchConfig(backend=backend)


def place_of_store() -> tuple[str, int]:
    """Address and port that all ranks go to; called on rank 0.

    torch's own store listens on all interfaces. On a node of the loopback interface one is opened there beforehand, and
    torch takes it for its own: a process has one store a port, if it is `multi_tenant`.
    """
    import ray
    from ray.train._internal.utils import get_address_and_port

    address = ray.util.get_node_ip_address()
    return (address, open_store(address)) if address == LOOPBACK else get_address_and_port()


def open_store(address: str) -> int:
    """A store that listens there alone, until this process ends or opens another; returns its port."""
    from torch.distributed import TCPStore

    server = socket.create_server((address, 0))
    port: int = server.getsockname()[1]
    given = {"is_master": True, "wait_for_workers": False, "multi_tenant": True, "master_listen_fd": server.detach()}
    _OPEN[:] = [TCPStore(address, port, **given)]
    return port
