"""The network between simulated hosts, made by a process of its own: python -m raytrain.simulate.switch, what to do as
JSON on standard input.

pyroute2 forks to enter a namespace, and what is forked off a process with threads may hang, or go on as its copy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

PREFIX_BITS = 24


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


def unplug(switch: str, port: str) -> None:
    """Take a cable out of the bridge."""
    from pyroute2 import NetNS

    with NetNS(switch) as network:
        network.link("set", index=network.link_lookup(ifname=port)[0], state="down")


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    {"connect": connect, "unplug": unplug}[wanted.pop("do")](**wanted)
