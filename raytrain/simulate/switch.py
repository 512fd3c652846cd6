"""The network between simulated hosts, made by a process of its own: python -m raytrain.simulate.switch, what to do as
JSON on standard input.

pyroute2 forks to enter a namespace, and what is forked off a process with threads may hang, or go on as its copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence

PREFIX_BITS = 24
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
FRAME_BYTES = 1 << 16


def connect(switch: str, interface: str, namespaces: Sequence[str], addresses: Sequence[str]) -> None:
    """A bridge in a namespace of its own, and a cable from it to each host."""
    from pyroute2 import NetNS, netns

    for name in (switch, *namespaces):
        netns.create(name)
    with NetNS(switch) as network:
        network.link("add", ifname="bridge", kind="bridge")
        bridge = network.link_lookup(ifname="bridge")[0]
        network.link("set", index=bridge, state="up")
        for number, namespace in enumerate(namespaces, start=1):
            peer = {"ifname": interface, "net_ns_fd": namespace}
            network.link("add", ifname=f"port{number}", kind="veth", peer=peer)
            port = network.link_lookup(ifname=f"port{number}")[0]
            network.link("set", index=port, master=bridge, state="up")
    for namespace, address in zip(namespaces, addresses, strict=True):
        with NetNS(namespace) as network:
            for name in ("lo", interface):
                network.link("set", index=network.link_lookup(ifname=name)[0], state="up")
            cable = network.link_lookup(ifname=interface)[0]
            network.addr("add", index=cable, address=address, prefixlen=PREFIX_BITS)


def plug(switch: str, port: str, state: str) -> None:
    """Take a cable out of the bridge (`down`), or put it in again (`up`)."""
    from pyroute2 import NetNS

    with NetNS(switch) as network:
        network.link("set", index=network.link_lookup(ifname=port)[0], state=state)


def delay(switch: str, port: str, number: int, seconds: float) -> None:
    """Everything on a cable comes that much later, each way, until this process ends: the kernel need not have netem.

    The cable moves to a bridge of its own, and this process carries frames from there to the other bridge and back.
    """
    from pyroute2 import NetNS, netns

    with NetNS(switch) as network:
        network.link("add", ifname=f"far{number}", kind="bridge")
        far = network.link_lookup(ifname=f"far{number}")[0]
        network.link("set", index=far, state="up")
    netns.setns(switch)  # devices are made where a process is
    ends = [_tap(f"{side}{number}") for side in ("near", "away")]
    with NetNS(switch) as network:
        bridges = network.link_lookup(ifname="bridge")[0], far
        for name, bridge in zip((f"near{number}", f"away{number}"), bridges, strict=True):
            network.link("set", index=network.link_lookup(ifname=name)[0], master=bridge, state="up")
        network.link("set", index=network.link_lookup(ifname=port)[0], master=far)
    print("delayed", flush=True)  # noqa: T201 - for who waits for it
    _carry(ends, seconds)


def _tap(name: str) -> int:
    """A network device whose frames this process reads and writes: a descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def _carry(ends: Sequence[int], seconds: float) -> None:
    """What is read at one end is written at the other, so much later, in order."""
    late: deque[tuple[float, int, bytes]] = deque()
    while True:
        left_s = max(late[0][0] - time.monotonic(), 0) if late else None
        for end in select.select(ends, [], [], left_s)[0]:
            other = ends[1 - ends.index(end)]
            with contextlib.suppress(BlockingIOError):
                while True:
                    late.append((time.monotonic() + seconds, other, os.read(end, FRAME_BYTES)))
        while late and late[0][0] <= time.monotonic():
            _, other, frame = late.popleft()
            with contextlib.suppress(OSError):  # a full device loses a frame, as a switch does
                os.write(other, frame)


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    {"connect": connect, "plug": plug, "delay": delay}[wanted.pop("do")](**wanted)
