"""The TorchTrainer, sized to what the cluster has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain.errors import RaytrainError, TrainingError

# Ray Data's shards, which come by the feed instead; and a watcher that removes the placement group of a lost
# controller, which Ray does itself when the driver goes.
SPARED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


@dataclass(frozen=True)
class Ranks:
    """The worker group.

    Attributes:
        world_size: number of ranks.
        use_gpu: each has a GPU; otherwise they compute on the CPU and talk through gloo.
        resources: that each rank reserves.
        label_selector: of the nodes they may run on.
    """

    world_size: int
    use_gpu: bool
    resources: dict[str, float]
    label_selector: dict[str, str] | None


def run_trainer(
    worker: Callable[[Any], None],
    config: Any,
    ranks: Ranks,
    *,
    storage: Path,
    attempt: str,
    failures: int,
    meanwhile: Callable[[], Any],
) -> None:
    """Run `worker(config)` on every rank and wait for the end.

    `meanwhile` is called once, by the controller when it is up: the ranks' processes start then, one thing after the
    other, and leave all CPUs but one to what else there is to do.

    Raises:
        RaytrainError: what a rank raised, when it is ours.
        TrainingError: any other failure, with its last line.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class LeanTrainer(TorchTrainer):
        """Without the actors for what is not used here, each of which costs a second of a CPU at the start."""

        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in SPARED_CALLBACKS]

    class Meanwhile(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            meanwhile()

    trainer = LeanTrainer(
        worker,
        train_loop_config={"worker": config},
        torch_config=TorchConfig(backend="nccl" if ranks.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=ranks.world_size,
            use_gpu=ranks.use_gpu,
            resources_per_worker=ranks.resources,
            label_selector=ranks.label_selector,
        ),
        run_config=ray.train.RunConfig(
            name=attempt,
            storage_path=str(storage.absolute()),
            callbacks=[Meanwhile()],
            failure_config=ray.train.FailureConfig(max_failures=failures, controller_failure_limit=failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _translate(error) from None


def _translate(error: Any) -> RaytrainError:
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        inner = getattr(failure, "_base_exc", failure)
        if isinstance(inner, RaytrainError):
            return inner
    last = getattr(failures[0], "_base_exc", failures[0])
    lines = [line.strip() for line in str(last).splitlines() if line.strip()] or ["no message"]
    return TrainingError(f"the training loop failed: {type(last).__name__}: {lines[-1]}")
