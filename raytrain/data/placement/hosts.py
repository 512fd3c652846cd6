"""Whether the hosts that tasks wait for are still there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from raytrain.cluster.topology import GROUP_LABEL
from raytrain.errors import TrainingError

ASK_EVERY_S = 2.0
WAIT_S = 120.0  # for another host of their groups, where the stages may run nowhere else


def _nobody() -> None:
    pass


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
        gone: Callable[[], None] = _nobody,
    ):
        self._groups, self._nodes, self._patience_s, self._gone = groups, nodes, patience_s, gone
        self._asked_s, self._lost = float("-inf"), False
        self._gone_s: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray Data pickles what decides when its tasks run; there is nobody to call there."""
        return {**self.__dict__, "_gone": _nobody}

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
