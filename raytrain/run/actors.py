"""The actors of a run on the driver's host."""

from __future__ import annotations

from typing import Any

from raytrain.cluster.environment import public_ray
from raytrain.run.load import here
from raytrain.run.plan import RunPlan


def start_feed(plan: RunPlan) -> Any:
    """Feeds the ranks."""
    import ray

    from raytrain.data.feed import Feed
    from raytrain.data.stream import FeedOptions, Stored

    options = FeedOptions(
        slots=plan.placed.slots,
        task_args=plan.placed.task_args,
        groups=plan.placed.groups,
        batches_per_task=plan.pipeline.batches_per_task,
        max_corrupt_share=plan.pipeline.max_corrupt_share,
        public_ray=public_ray(),
        choice=plan.choice,
        stage_timeout_s=plan.pipeline.stage_timeout_s,
    )
    actor = ray.remote(num_cpus=0, max_restarts=3, max_concurrency=2 * plan.topology.world_size + 8)(Feed)
    splits = Stored.put(plan.data.opened.pickled_splits())
    return actor.options(label_selector=here()).remote(plan.data.spec, splits, options)


def start_keeper(plan: RunPlan, attempt: str) -> Any:
    """Keeps the checkpoints.

    Raises:
        CheckpointError: their folder cannot be made.
    """
    import ray

    from raytrain.train.checkpoints.keeper import Keeper, make_folder

    folder = plan.options.folder.checkpoints.absolute()
    make_folder(folder, attempt)
    actor = ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)(Keeper)
    keep, world_size = plan.job.training.checkpoint.keep, plan.topology.world_size
    return actor.options(label_selector=here()).remote(str(folder), attempt, keep, world_size)
