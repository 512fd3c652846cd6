"""Nodes that are about to go: Ray has been asked to drain them (`ray drain-node`, an autoscaler, KubeRay)."""

from __future__ import annotations

from collections.abc import Set

from raytrain.ray_internals.contract import Contract

DRAINING = Contract(
    does="noticing hosts that are about to go",
    needs=("ray._private.state:state.get_draining_nodes",),
    buys="the ranks leave a host that is drained with a checkpoint of the step in flight: no step is done again",
    instead="a host goes when it goes, and its ranks begin anew from the last checkpoint",
)


def draining(public: bool) -> Set[str]:
    """Ids of the living nodes that take no new work."""
    if not DRAINING.holds(public):
        return frozenset()
    from ray._private.state import state

    return state.get_draining_nodes().keys()
