"""The account of an epoch's losses: their mean over the samples that were trained on, and none that is no number."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raytrain.errors import LossError


class LossAccount:
    """One rank's. The device is asked for a value only when somebody looks; a CPU is looked at at once.

    Args:
        device: where the losses are.
        total, samples: of the epoch so far, from a checkpoint.
        forgiving: whether a step whose loss is no number may be skipped (`training.on_nan: skip`).
    """

    def __init__(self, device: torch.device, total: float, samples: int, *, forgiving: bool = False):
        self._device, self._forgiving = device, forgiving
        self._at_once = forgiving or device.type == "cpu"
        self._sum = torch.tensor(total, dtype=torch.float64, device=device)
        self._samples = samples
        self._forget_window()
        self._last: torch.Tensor | None = None
        self._unchecked: list[tuple[torch.Tensor, int, int, Sequence[int]]] = []
        self._bad: LossError | None = None  # since the last update

    def add(self, loss: torch.Tensor | float, samples: int, step: int, epoch: int, ids: Sequence[int]) -> None:
        """The mean loss of a batch of `samples`; that of a batch without any is no loss.

        Raises:
            LossError: it is no finite number; where steps may be skipped, `settle` knows.
        """
        if not samples:
            return
        loss = torch.as_tensor(loss, device=self._device).detach()
        self._unchecked.append((loss, step, epoch, ids))
        if self._at_once:
            try:
                self.check()
            except LossError as error:
                if not self._forgiving:
                    raise
                self._bad = error
                return
        self._last = loss
        self._window_sum = self._window_sum + loss.double() * samples
        self._window_samples += samples

    def settle(self, skipped: bool) -> None:
        """The batches since the last call have become an update, or were `skipped` and do not count.

        Raises:
            LossError: one that is no number has become part of an update.
        """
        bad, self._bad = self._bad, None
        if bad is not None and not skipped:
            raise bad
        if not skipped:
            self._sum, self._samples = self._sum + self._window_sum, self._samples + self._window_samples
        self._forget_window()

    def _forget_window(self) -> None:
        self._window_sum, self._window_samples = torch.zeros_like(self._sum), 0

    def check(self) -> None:
        """Look at the losses that nobody has looked at.

        Raises:
            LossError: the first that is no finite number.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        finite = torch.stack([loss.float() for loss, *_ in unchecked]).isfinite().tolist()
        for (loss, step, epoch, ids), is_finite in zip(unchecked, finite, strict=True):
            if not is_finite:
                raise LossError.of(float(loss), step, epoch, [int(each) for each in ids])

    def last(self) -> float | None:
        """The last loss, for the live panel.

        Raises:
            LossError: it, or one before, is no finite number.
        """
        self.check()
        return None if self._last is None else float(self._last)

    def totals(self) -> tuple[float, int]:
        """Sum over samples, and their number, of this epoch."""
        return float(self._sum), self._samples

    def clear(self) -> None:
        """Another epoch begins."""
        self.check()
        self._sum, self._samples = torch.zeros_like(self._sum), 0
        self._forget_window()
