"""The TorchTrainer, sized to what the cluster has."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import without_own
from raytrain.errors import RaytrainError, TrainingError

# Ray Data's shards, which come by the feed instead; and a watcher that removes the placement group of a lost
# controller, which Ray does itself when the driver goes.
SPARED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
ABANDON_S = 5.0  # a controller answers within one exchange with its ranks


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
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> None:
    """Run `worker(config)` on every rank and wait for the end; `run` runs Ray Train's controller.

    Raises:
        RaytrainError: what a rank raised, when it is ours.
        TrainingError: any other failure, with its last line.
    """
    import ray.train
    from ray.train.torch import TorchConfig

    trainer = lean_trainer()(
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
            failure_config=ray.train.FailureConfig(max_failures=failures, controller_failure_limit=failures),
        ),
    )
    trainer.run = run
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _translate(error) from None


@cache
def lean_trainer() -> type[Any]:
    """A TorchTrainer without the actors that are not needed here; each costs one or two seconds at the start.

    Its controller runs in the calling thread, which has imported everything, and not in an actor, which has not.
    """
    import ray
    from ray._private.log import PlainRayHandler
    from ray.runtime_context import RuntimeContext
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.train.v2._internal.execution.callback import WorkerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    class FixedRanks(FixedScalingPolicy):
        """Does not tell Ray Data's coordinator what the ranks need: its actor would be started, and waited for."""

        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class RankGroup(WorkerGroup):
        """Ranks in the processes that Ray keeps ready, unless the user has set what only new ones would see."""

        @staticmethod
        def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:
            return {"env_vars": without_own(get_env_vars_to_propagate())}

    class OnePrint(WorkerCallback):
        """A rank's `print` is Python's again: Ray Train's logs each line besides, and a terminal shows it twice. Not by
        Ray's setting, since the processes of a cluster that is attached to have been started without it."""

        def after_init_train_context(self) -> None:
            from ray.train.v2._internal.logging.patch_print import _original_print

            builtins.print = _original_print

    class Controller(TrainController):
        worker_group_cls = RankGroup

    class LeanTrainer(TorchTrainer):
        run: Callable[[Coroutine[Any, Any, None]], None]

        def _create_default_callbacks(self) -> list[Any]:
            kept = [c for c in super()._create_default_callbacks() if type(c).__name__ not in SPARED_CALLBACKS]
            return [*kept, OnePrint()]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if ray.get_runtime_context().get_actor_id() is None:
                RuntimeContext.current_actor = None  # the ranks are told which actor controls them, but never ask it
            controller = Controller(**{**parts, "scaling_policy": FixedRanks(self.scaling_config)})
            for handler in logging.getLogger("ray.train").handlers:
                if isinstance(handler, PlainRayHandler):  # the others write to files of the Ray session
                    handler.setLevel(logging.WARNING)
            self.run(controller.run())
            return controller.get_result()

    return LeanTrainer


class Training:
    """`run_trainer` in a thread of its own, so that the caller's can show progress and hear signals.

    Attributes:
        failure: what it raised, once it has ended.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.failure: BaseException | None = None
        self._args, self._options = args, options
        self._loop, self._over = asyncio.new_event_loop(), threading.Event()
        self._left = False

    def start(self) -> None:
        threading.Thread(target=self._fit, name="raytrain-fit", daemon=True).start()

    def _fit(self) -> None:
        from ray._private import auto_init_hook

        try:
            run_trainer(*self._args, **self._options, run=self._run)
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it again
            self.failure = error
        finally:
            self._over.set()
            if self._left:
                auto_init_hook.enable_auto_connect = True

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
        from ray._private import auto_init_hook

        with contextlib.suppress(RuntimeError):  # it has ended meanwhile
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])
        if not self.ended(ABANDON_S):
            self._left = auto_init_hook.enable_auto_connect
            auto_init_hook.enable_auto_connect = False  # until it has ended after all


def import_ahead() -> None:
    """torch takes seconds to import; the nodes start meanwhile."""
    with contextlib.suppress(ImportError):
        lean_trainer()


def _translate(error: Any) -> RaytrainError:
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        inner = getattr(failure, "_base_exc", failure)
        if isinstance(inner, RaytrainError):
            return inner
    last = getattr(failures[0], "_base_exc", failures[0])
    lines = [line.strip() for line in str(last).splitlines() if line.strip()] or ["no message"]
    hint = ""
    if "No module named" in lines[-1]:
        hint = "; it must be installed on every host of the cluster, or lie beside the script or job file that names it"
    return TrainingError(f"the training loop failed: {type(last).__name__}: {lines[-1]}{hint}")
