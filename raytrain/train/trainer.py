"""The TorchTrainer, sized to what the cluster has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import prepare_public_ray_train, public_ray, without_own
from raytrain.errors import RaytrainError, TrainingError
from raytrain.ray_internals.loopback import torch_config
from raytrain.ray_internals.train import NoNewRay, causes, quieten, trainer_class
from raytrain.train.contract import Leaving

ABANDON_S = 5.0  # a controller answers within one exchange with its ranks
LEAST_STARTS = 3  # of ranks that find no place, a minute each: whoever looks at their hosts says sooner what is wrong


@dataclass(frozen=True)
class Ranks:
    """The processes that train.

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
    run_rank: Callable[[Any], None],
    config: Any,
    ranks: Ranks,
    *,
    storage: Path,
    attempt: str,
    failures: int,
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> None:
    """Run `run_rank(config)` on every rank and wait for the end; `run` runs Ray Train's controller, which has an actor
    of its own instead where Ray's public API alone is used.

    Raises:
        RaytrainError: what a rank raised, when it is ours.
        TrainingError: any other failure, with its last line.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    kind = trainer_class(public_ray())
    if kind is TorchTrainer:
        prepare_public_ray_train()
    trainer = kind(
        run_rank,
        train_loop_config={"work": config},
        torch_config=torch_config("nccl" if ranks.use_gpu else "gloo", public=public_ray() or kind is TorchTrainer),
        scaling_config=ray.train.ScalingConfig(
            num_workers=ranks.world_size,
            use_gpu=ranks.use_gpu,
            resources_per_worker=ranks.resources,
            label_selector=ranks.label_selector,
        ),
        run_config=ray.train.RunConfig(
            name=attempt,
            storage_path=str(storage.absolute()),
            failure_config=ray.train.FailureConfig(
                max_failures=failures, controller_failure_limit=max(failures, LEAST_STARTS)
            ),
        ),
    )
    trainer.run, trainer.rank_environment = run, without_own
    trainer.is_no_failure = lambda error: isinstance(error, Leaving)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _translate(error) from None


class Training:
    """`run_trainer` in a thread of its own, so that the caller's can show progress and hear signals.

    Attributes:
        failure: what it raised, once it has ended.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.failure: BaseException | None = None
        self._args, self._options = args, options
        self._loop, self._over = asyncio.new_event_loop(), threading.Event()
        self._no_new_ray = NoNewRay(public_ray())

    def start(self) -> None:
        threading.Thread(target=self._fit, name="raytrain-fit", daemon=True).start()

    def _fit(self) -> None:
        try:
            run_trainer(*self._args, **self._options, run=self._run)
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it again
            self.failure = error
        finally:
            self._loop.close()
            self._over.set()
            self._no_new_ray.end()

    def _run(self, controller: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(controller)

    def ended(self, within_s: float) -> bool:
        """Whether it has, or does within so much time. (`Thread.join` takes a thread for dead when a signal handler
        raises in the midst of it.)"""
        return self._over.wait(within_s)

    def abandon(self) -> None:
        """End the controller, whatever the ranks do, before Ray is shut down under it.

        Otherwise its next call would end this process, or start a Ray of its own, as any of Ray's functions does
        without a connection.
        """
        quieten(logging.CRITICAL)  # what it meets from now on is no news
        with contextlib.suppress(RuntimeError):  # it has ended meanwhile
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])
        if not self.ended(ABANDON_S):
            self._no_new_ray.begin()  # until it has ended after all


def import_ahead() -> None:
    """torch takes seconds to import; the nodes start meanwhile."""
    with contextlib.suppress(ImportError):
        trainer_class(public_ray())


def _translate(error: Any) -> RaytrainError:
    failures = causes(error)
    for failure in failures:
        if isinstance(failure, RaytrainError):
            return failure
    last = failures[0]
    lines = [line.strip() for line in str(last).splitlines() if line.strip()] or ["no message"]
    hint = ""
    if "No module named" in lines[-1]:
        hint = "; it must be installed on every host of the cluster, or lie beside the script or job file that names it"
    return TrainingError(f"the training loop failed: {type(last).__name__}: {lines[-1]}{hint}")
