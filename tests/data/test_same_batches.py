"""The same seed makes the same batches, whichever hosts prepare them and however fast they are."""

from __future__ import annotations

import time

import numpy as np
import pytest
from feeding import make_feed, take_all

from raytrain.data.order import Position
from raytrain.data.producer import node_id
from raytrain.data.router import Router


def prepared(two_nodes, pets, *, is_global, selector=None, slow_host=None):
    """By rank: place in the plan, ids and pixels of every batch, in the order in which it came."""

    def speckle(image, rng):
        if node_id() == slow_host:
            time.sleep(0.01)  # of a host
        return np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)

    feed = make_feed(two_nodes, pets, [speckle], is_global=is_global, selector=selector, batches_per_task=2)
    feed.begin("a", Position(), 2, 0)
    return [
        [(b.header.segment, b.header.batch, b.key.tolist(), b.fields["image"].tobytes()) for b in take_all(feed, rank)]
        for rank in range(2)
    ]


@pytest.mark.parametrize("is_global", [True, False], ids=["a global batch", "a rank's batch"])
def test_batches_do_not_depend_on_hosts_and_their_speed(two_nodes, pets, is_global, monkeypatch):
    arrived: list[tuple[int, int]] = []
    arrive = Router.arrive

    def noted(router, segment, batch, *more):
        arrived.append((segment, batch))
        arrive(router, segment, batch, *more)

    alone = prepared(two_nodes, pets, is_global=is_global, selector="train")
    monkeypatch.setattr(Router, "arrive", noted)
    slow = next(host.node_id for host in two_nodes.topology.hosts if host.group == "cpu")
    together = prepared(two_nodes, pets, is_global=is_global, slow_host=slow)
    assert arrived != sorted(arrived), "the slow host's came late"
    assert sorted(sum(alone, [])) == sorted(sum(together, [])), "the same samples, and the same random numbers"
    if is_global:
        assert alone == together, "and every rank has the same ones in the same order"
