"""This host's place in the network: its address and interface, other hosts' names, and whether EFA is there."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import psutil

from raytrain.errors import ClusterError, one_line

SYS_INFINIBAND = Path("/sys/class/infiniband")
FIRST_RDMA_EFA = 0xEFA1  # PCI device ids of EFA: 0xefa0 has no RDMA, those after it do (Linux, drivers/.../efa_main.c)

T = TypeVar("T")


def resolve(name: str) -> str:
    """The IPv4 address of a host name.

    Raises:
        OSError: it does not resolve (yet).
    """
    try:
        return socket.gethostbyname(name)
    except UnicodeError as error:  # a label that is empty or too long
        raise OSError(str(error)) from None


async def aside(function: Callable[..., T], *arguments: object) -> T:
    """Run what may block for long, such as a look-up of a name, where neither the loop nor the end waits for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        outcome: tuple[T | None, Exception | None]
        try:
            outcome = function(*arguments), None
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            outcome = None, error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await done


def own_address(interface: str | None, own_name: str, towards: str | None = None) -> tuple[str, str | None]:
    """The address that other hosts reach this host under, and the interface that carries it.

    The platform's interface comes first, where this host really has it; then the route to another host; then the
    host's own name.

    Args:
        interface: as the platform names it.
        own_name: this host's name.
        towards: address of another host of the cluster, if known.

    Raises:
        ClusterError: this host has no address besides loopback.
    """
    addresses = _addresses()
    if interface in addresses:
        return addresses[interface], interface
    candidates = []
    if towards is not None:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe, suppress(OSError):
            probe.connect((towards, 9))  # sends nothing: it asks the routing table
            candidates.append(probe.getsockname()[0])
    with suppress(OSError):
        candidates.append(resolve(own_name))
    for address in [*candidates, *addresses.values()]:
        for name, carried in addresses.items():
            if carried == address and not address.startswith("127."):
                return address, name
    raise ClusterError(f"host {own_name} has no network address besides loopback")


def _addresses() -> dict[str, str]:
    """IPv4 address of each interface that is up."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        name: found.address
        for name, all_found in psutil.net_if_addrs().items()
        for found in all_found
        if name in up and found.family == socket.AF_INET
    }


def interface_of(address: str) -> str | None:
    """The name of the interface that has it, such as `lo` or `lo0`."""
    return next((name for name, known in _addresses().items() if known == address), None)


def label(text: str) -> str:
    """`text` as the value of a Ray label: letters, digits, dashes, dots and underscores, at most 63 of them."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("-._")


def port_is_free(port: int, address: str = "") -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def why_unreachable(name: str) -> str:
    """What this host can see of another one that never called."""
    try:
        address = resolve(name)
    except OSError as error:
        return f"its name does not resolve ({one_line(error)})"
    return f"nothing came from {address}"


def efa_devices(infiniband: Path = SYS_INFINIBAND) -> dict[str, int]:
    """The Elastic Fabric Adapters of this host: name and PCI device id, as sysfs shows them."""
    found = {}
    for device in sorted(infiniband.glob("*")):
        try:
            if (device / "device" / "driver").resolve(strict=True).name == "efa":
                found[device.name] = int((device / "device" / "device").read_text(), 16)
        except (OSError, ValueError):
            continue
    return found


def collective_settings(interface: str | None, efa: str, devices: dict[str, int]) -> dict[str, str]:
    """Environment for NCCL, gloo and libfabric on this host.

    Args:
        interface: that carries this host's cluster address; None on a single host.
        efa: `auto` for what the host has, `on` and `off` to say so.
        devices: of this host, from `efa_devices`.
    """
    settings = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}
    if efa == "off":
        return {**settings, "FI_PROVIDER": "tcp"}
    if efa == "on" or devices:
        settings |= {"FI_PROVIDER": "efa"}
        if efa == "on" or any(device >= FIRST_RDMA_EFA for device in devices.values()):
            settings |= {"FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
    return settings
