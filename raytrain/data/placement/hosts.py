"""Whether the hosts that tasks wait for are still there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from raytrain.cluster.topology import GROUP_LABEL

ASK_EVERY_S = 2.0


class Hosts:
    """Those of some groups, which Ray is asked about now and then.

    Args:
        nodes: `ray.nodes`.
    """

    def __init__(self, groups: Sequence[str], nodes: Callable[[], list[dict[str, Any]]]):
        self._groups, self._nodes = groups, nodes
        self._asked_s, self._lost = float("-inf"), False

    def lost(self) -> bool:
        """Whether none of them is left."""
        if not self._lost and time.monotonic() - self._asked_s >= ASK_EVERY_S:
            alive = [node.get("Labels") or {} for node in self._nodes() if node.get("Alive")]
            self._lost = not any(labels.get(GROUP_LABEL) in self._groups for labels in alive)
            self._asked_s = time.monotonic()
        return self._lost
