"""How much of the ranks' time their GPUs idled within steps."""

from __future__ import annotations

from collections.abc import Sequence

from raytrain.record.schema import RankFigures


def gap_share(ranks: Sequence[RankFigures]) -> float | None:
    """Of the training time of those ranks that can tell; None where none can."""
    told = [(rank.gap_s, rank.train_s) for rank in ranks if rank.gap_s is not None and rank.train_s]
    return sum(gap_s for gap_s, _ in told) / sum(train_s for _, train_s in told) if told else None
