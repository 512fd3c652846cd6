"""How much may lie ready in the object stores.

Ray Data stops at half of all object stores together. Where few hosts prepare most samples, theirs are full long before,
and from 70 % on (Ray's `high_plasma_storage_usage`) Ray has every process of the cluster collect its Python garbage
twice a minute, the ranks' included: on a small host everything stands still for seconds. And where samples are small
and cheap, CPUs that the ranks want too would be at work on batches of the far future.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.cluster.topology import GROUP_LABEL

STORE_SHARE = 0.4  # of any host's object store
AHEAD_OF_RANKS_S = 30.0  # at the rate at which they have taken batches so far: evaluations and checkpoints are shorter
RATE_AFTER_S = 2.0  # of taking, the rate is believed
AT_FIRST = 16  # times the least, until then
LEAST_TASKS_A_BLOCK = 4  # one of them may hand over a block in each of Ray Data's ten rounds a second, at least


def hosts_that_prepare(nodes: Sequence[Mapping[str, Any]], groups: Sequence[str] = ()) -> list[Mapping[str, Any]]:
    """Of `ray.nodes()`, the living ones of these groups; without, of every group."""
    ours = (node for node in nodes if not groups or (node.get("Labels") or {}).get(GROUP_LABEL) in groups)
    return [node for node in ours if node.get("Alive")]


def stock_bytes(nodes: Sequence[dict[str, Any]], groups: Sequence[str] = ()) -> int | None:
    """What may lie ready in all of the hosts (`ray.nodes()`) that prepare, each holding a share by its CPUs.

    None where no host says how large its object store is.

    Args:
        groups: whose hosts the tasks run on (see cluster.placement); without, those of every group.
    """
    hosts = [node.get("Resources", {}) for node in hosts_that_prepare(nodes, groups)]
    sizes = [
        (host["object_store_memory"], host["CPU"]) for host in hosts if {"object_store_memory", "CPU"} <= set(host)
    ]
    if not sizes:
        return None
    return int(STORE_SHARE * min(store / cpus for store, cpus in sizes) * sum(cpus for _, cpus in sizes))


@dataclass(frozen=True)
class Stock:
    """How much may lie ready: bounded by the stores, and by what the ranks will soon take.

    Args:
        most_bytes: in all of the cluster.
        blocks_ahead: that every task has lying ready besides.
    """

    most_bytes: int
    blocks_ahead: int

    def watch(self) -> StockWatch:
        """For one execution."""
        return StockWatch(self)


class StockWatch:
    """Follows one execution, and says how much more may be collected from its tasks."""

    def __init__(self, stock: Stock):
        self._stock = stock
        self._first: tuple[float, float] | None = None  # when the first block was taken, and how many bytes by then

    def room(self, tasks: int, block_bytes: float, ready: float, made: float) -> int:
        """Bytes, by how many tasks run, what a block has on average (0 where nobody knows), the bytes that lie ready,
        and those that have been made so far."""
        most = self._stock.most_bytes - tasks * self._stock.blocks_ahead * block_bytes
        least = (tasks / LEAST_TASKS_A_BLOCK + 1) * block_bytes
        wanted = self._wanted(made - ready)
        if block_bytes:
            most = min(most, AT_FIRST * least if wanted is None else wanted)
        return max(int(max(most, least, 1)) - int(ready), 0)

    def _wanted(self, taken: float) -> float | None:
        """Bytes that the ranks take in AHEAD_OF_RANKS_S, by what they have taken so far; None at first."""
        now = time.monotonic()
        if self._first is None and taken > 0:
            self._first = now, taken
        if self._first is None or now - self._first[0] < RATE_AFTER_S:
            return None
        began, before = self._first
        return AHEAD_OF_RANKS_S * (taken - before) / (now - began)
