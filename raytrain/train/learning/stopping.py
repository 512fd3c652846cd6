"""An end before the last epoch, when nothing improves any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raytrain.config.learning import EarlyStopping
from raytrain.errors import ConfigError, nearest


class Patience:
    """Part of a checkpoint, so that a run that goes on knows what the best was.

    Args:
        figures: of the validation split.

    Raises:
        ConfigError: the metric is none of them.

    Attributes:
        over: why training ends; None as long as it goes on.
    """

    def __init__(self, settings: EarlyStopping, figures: Iterable[str]):
        known = [f"validation_{each}" for each in figures]
        if settings.metric not in known:
            raise ConfigError(
                f"training.early_stopping.metric: {settings.metric!r} is not logged{nearest(settings.metric, known)}; "
                f"there are {', '.join(known)}"
            )
        self._settings = settings
        self._best: float | None = None
        self._best_epoch = self._epochs = 0
        self.over: str | None = None

    def look(self, metrics: Mapping[str, float]) -> None:
        """After an epoch."""
        settings = self._settings
        self._epochs += 1
        value = float(metrics[settings.metric])
        if settings.is_better(value, self._best):
            self._best, self._best_epoch = value, self._epochs
        elif self._epochs - self._best_epoch >= settings.patience:
            since = "was never a number"
            if self._best is not None:
                since = f"has not been better than {self._best:.6g} since epoch {self._best_epoch}"
            self.over = f"stopped early: {settings.metric} {since} (training.early_stopping)"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "best_epoch": self._best_epoch, "epochs": self._epochs, "over": self.over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._best_epoch = state["best"], state["best_epoch"]
        self._epochs, self.over = state["epochs"], state["over"]
