"""The public way to start a node: Ray's command line."""

from __future__ import annotations

from ray.scripts.scripts import start

from raytrain.ray_internals.node import Wanted, start_command

HEAD = Wanted(
    head=True,
    address="10.0.0.1",
    head_address="10.0.0.1:6379",
    name="algo-1",
    cpus=3,
    gpus=0,
    memory=1,
    resources={"group:gpu": 1.0},
    labels={"raytrain-host": "algo-1", "raytrain-group": "gpu"},
    dashboard="0.0.0.0:8265",
)


def understood(wanted: Wanted) -> dict:
    """What Ray's own parser makes of it; it refuses an option that it does not know."""
    return start.make_context("start", start_command(wanted)[1:]).params


def test_a_head():
    given = understood(HEAD)
    assert (given["head"], given["port"], given["address"], given["block"]) == (True, 6379, None, True)
    assert (given["node_ip_address"], given["node_name"]) == ("10.0.0.1", "algo-1")
    assert (given["num_cpus"], given["num_gpus"], given["memory"]) == (3, 0, 1)
    assert given["resources"] == '{"group:gpu": 1.0}'
    assert given["labels"] == "raytrain-host=algo-1,raytrain-group=gpu"
    assert (given["include_dashboard"], given["dashboard_host"], given["dashboard_port"]) == (True, "0.0.0.0", 8265)


def test_a_node_beside_it_with_nothing_said():
    given = understood(Wanted(head=False, address="10.0.0.2", head_address="10.0.0.1:6379", name="x", cpus=2, gpus=1))
    assert (given["head"], given["address"], given["num_cpus"], given["num_gpus"]) == (False, "10.0.0.1:6379", 2, 1)
    assert (given["memory"], given["labels"], given["resources"]) == (None, "", "{}")


def test_a_head_without_a_dashboard():
    bare = Wanted(head=True, address="10.0.0.1", head_address="10.0.0.1:6379", name="x", cpus=2, gpus=0)
    assert understood(bare)["include_dashboard"] is False
