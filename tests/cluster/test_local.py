"""Clusters that raytrain starts, and one that its process is connected to already."""

from __future__ import annotations

import pytest

from raytrain.cluster import local


def test_a_process_without_a_connection_has_none_to_join():
    assert local.join() is None


@pytest.mark.ray
def test_a_connection_that_is_there_is_used_and_left(two_nodes):
    import ray

    joined = local.join()
    assert joined is not None
    assert (joined.address, joined.topology) == (two_nodes.address, two_nodes.topology)
    assert (joined.attached, joined.joined) == (True, True)
    assert [(host.group, host.cpus) for host in joined.topology.hosts] == [("train", 1), ("cpu", 1)]
    joined.close()
    assert ray.is_initialized()
    assert ray.get(ray.remote(num_cpus=1)(lambda: 7).remote()) == 7
    again = local.join()
    assert again is not None and again.address == joined.address, "as often as one likes"
