"""A stream that nobody fills but the test."""

from __future__ import annotations

from raytrain.data.router import Router


class ByHand:
    """In the place of `Stream`: a real router, and batches when the test says so."""

    def __init__(self, plan, splits_pickle, options, changed, after=None, **_):
        self.plan, self.router, self.after = plan, Router(plan), after
        self.taken = [0] * plan.world_size
        self.error, self.abandoned, self.first_ready_at = None, False, None

    @property
    def num_ready(self):
        return sum(map(len, self.router.queues))

    def fill(self, batches, segment=0):
        self.first_ready_at = self.first_ready_at or 12.5
        for batch in batches:
            self.router.arrive(segment, batch, (f"block {batch}", 0))
