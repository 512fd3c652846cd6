"""Whether the hosts that tasks wait for are still there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from raytrain.cluster.topology import GROUP_LABEL
from raytrain.errors import TrainingError

ASK_EVERY_S = 2.0
WAIT_S = 120.0  # for another host of their groups, where the stages may run nowhere else


class HostsLost(TrainingError):
    """The stages have no host any more; what is ready can still be trained on."""


class Hosts:
    """Those of some groups, which Ray is asked about now and then.

    Args:
        nodes: `ray.nodes`.
        patience_s: how long others of these groups are waited for.
        gone: called once no host is left, each time.
    """

    def __init__(
        self,
        groups: Sequence[str],
        nodes: Callable[[], list[dict[str, Any]]],
        patience_s: float = 0.0,
        gone: Callable[[], None] = lambda: None,
    ):
        self._groups, self._nodes, self._patience_s, self._gone = groups, nodes, patience_s, gone
        self._asked_s, self._lost = float("-inf"), False
        _HERE[id(self)] = self
        self._gone_s: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Data pickles what decides when its tasks run, and unpickles it here again, and where nobody asks."""
        return _same, (id(self), self._groups)

    def gone(self) -> bool:
        """Whether none of them is left."""
        self.lost()
        return self._gone_s is not None

    def lost(self) -> bool:
        """Whether none of them is left, and no other has come in time."""
        now = time.monotonic()
        if not self._lost and now - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now
            alive = [node.get("Labels") or {} for node in self._nodes() if node.get("Alive")]
            if any(labels.get(GROUP_LABEL) in self._groups for labels in alive):
                self._gone_s = None
            elif self._gone_s is None:
                self._gone_s = now
                self._gone()
            self._lost = self._gone_s is not None and now - self._gone_s >= self._patience_s
        return self._lost


_HERE: WeakValueDictionary[int, Hosts] = WeakValueDictionary()


def _same(number: int, groups: Sequence[str]) -> Hosts:
    return _HERE.get(number) or Hosts(groups, list)
