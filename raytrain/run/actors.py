"""The actors of a run: two on the driver's host, and a sampler on every host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.data.order import StreamSpec
    from raytrain.data.pipeline import Pipeline
    from raytrain.run.driver import Run


def start_feed(this: Run, pipeline: Pipeline, spec: StreamSpec) -> Any:
    """Feeds the ranks."""
    import ray

    from raytrain.data.feed import Feed
    from raytrain.data.stream import FeedOptions, Stored

    options = FeedOptions(
        slots=this.placed.slots,
        task_args=this.placed.task_args,
        batches_per_task=pipeline.batches_per_task,
        max_corrupt_share=pipeline.max_corrupt_share,
    )
    actor = ray.remote(num_cpus=0, max_restarts=3, max_concurrency=2 * this.topology.world_size + 8)(Feed)
    splits = Stored.put(this.opened.pickled_splits())
    return actor.options(label_selector=_here()).remote(spec, splits, options)


def start_keeper(this: Run, attempt: str) -> Any:
    """Keeps the checkpoints."""
    import ray

    from raytrain.train.checkpoints.keeper import Keeper

    actor = ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)(Keeper)
    folder = str(this.folder.checkpoints.absolute())
    keep, world_size = this.job.training.checkpoint.keep, this.topology.world_size
    return actor.options(label_selector=_here()).remote(folder, attempt, keep, world_size)


def _here() -> dict[str, str]:
    """The driver's own node, as a label selector."""
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
