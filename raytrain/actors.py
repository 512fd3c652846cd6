"""The actors of a run that live on the driver's host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.data.order import StreamSpec
    from raytrain.data.pipeline import Pipeline
    from raytrain.job import Run


def start_feed(this: Run, pipeline: Pipeline, spec: StreamSpec) -> Any:
    """Feeds the ranks."""
    import ray

    from raytrain.data.feed import Feed
    from raytrain.data.stream import FeedOptions

    opened = this.opened
    share = pipeline.max_corrupt_share
    options = FeedOptions(
        slots=this.placed.slots,
        task_args=this.placed.task_args,
        batches_per_task=pipeline.batches_per_task,
        max_corrupt={
            "train": int(share * opened.train.num_samples),
            "validation": int(share * opened.num_validation),
        },
    )
    actor = ray.remote(num_cpus=0, max_restarts=3, max_concurrency=2 * this.topology.world_size + 8)(Feed)
    return actor.options(label_selector=_here()).remote(spec, opened.pickled_splits(), options)


def start_keeper(this: Run, attempt: str) -> Any:
    """Keeps the checkpoints."""
    import ray

    from raytrain.train.keeper import Keeper

    actor = ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)(Keeper)
    folder = (this.folder.checkpoints / attempt).absolute()
    return actor.options(label_selector=_here()).remote(str(folder), this.job.training.checkpoint.keep)


def _here() -> dict[str, str]:
    """The driver's own node, as a label selector."""
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
