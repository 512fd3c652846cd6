"""How fast a rank gets on, for the live panel and the timeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LOOK_EVERY_S = 0.5


class Pace:
    """Figures that are looked at twice a second at most: the loss is read off the device for them."""

    def __init__(self) -> None:
        self._mark: tuple[float, int, dict[str, Any]] | None = None

    def look(self, samples: int, loss: Callable[[], float | None], wait_share: float) -> dict[str, Any]:
        """As RankProgress has them.

        Args:
            samples: of all ranks so far, if they go at this one's pace.
        """
        now = time.monotonic()
        at, before, shown = self._mark or (now, samples, {})
        if self._mark is None or now - at >= LOOK_EVERY_S:
            rate = (samples - before) / (now - at) if now > at else None
            shown = {"loss": loss(), "samples_per_s": rate, "wait_share": wait_share}
            self._mark = (now, samples, shown)
        return shown
