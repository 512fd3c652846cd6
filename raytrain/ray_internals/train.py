"""Ranks: a TorchTrainer sized to what raytrain needs of it, or Ray Train's own in the public way."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any

from raytrain.ray_internals.contract import Contract

RANK_CLASSES = ("RayTrainWorker", "_RayTrainWorker")  # the actors that ranks are, as Ray lists them
INTERNAL = "ray.train.v2._internal"


@cache
def lean_trainer() -> type[Any]:
    """A TorchTrainer without the actors that are not needed here; each costs one or two seconds at the start.

    Its controller runs in the calling thread, which has imported everything, and not in an actor, which has not. It has
    three attributes more: `run`, which runs the controller; `rank_environment`, which chooses of Ray Train's settings
    those that ranks are started with; and `is_no_failure`, whether what a rank raised only asks for a new beginning.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.train.v2._internal.execution.callback import WorkerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    # Ray Data's shards, which come by the feed instead; and a watcher that removes the placement group of a lost
    # controller, which Ray does itself when the driver goes.
    spared = (DatasetsCallback, PlacementGroupCleanerCallback)

    class FixedRanks(FixedScalingPolicy):
        """Does not tell Ray Data's coordinator what the ranks need: its actor would be started, and waited for."""

        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class RankGroup(WorkerGroup):
        """Ranks in the processes that Ray keeps ready, unless the user has set what only new ones would see; told that
        no actor controls them, which they never ask."""

        rank_environment: Callable[[Mapping[str, str]], dict[str, str]]
        _init_train_context_on_workers = _without_an_actor(WorkerGroup._init_train_context_on_workers)

        def _get_worker_runtime_env(self, custom_runtime_env: Any) -> dict[str, Any]:
            return {"env_vars": self.rank_environment(get_env_vars_to_propagate())}

    class OnePrint(WorkerCallback):
        """A rank's `print` is Python's again: Ray Train's logs each line besides, and a terminal shows it twice. Not by
        Ray's setting, since the processes of a cluster that is attached to have been started without it."""

        def after_init_train_context(self) -> None:
            from ray.train.v2._internal.logging.patch_print import _original_print

            builtins.print = _original_print

    class LeanTrainer(TorchTrainer):
        run: Callable[[Coroutine[Any, Any, None]], None] = staticmethod(asyncio.run)
        rank_environment: Callable[[Mapping[str, str]], dict[str, str]] = staticmethod(dict)
        is_no_failure: Callable[[BaseException], bool] = staticmethod(lambda error: False)

        def _create_default_callbacks(self) -> list[Any]:
            kept = [each for each in super()._create_default_callbacks() if not isinstance(each, spared)]
            return [*kept, OnePrint()]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            group = type("RankGroup", (RankGroup,), {"rank_environment": staticmethod(self.rank_environment)})
            kind = type("Controller", (TrainController,), {"worker_group_cls": group})
            policy = _forgiving(self.is_no_failure)(self.run_config.failure_config)
            own = {"scaling_policy": FixedRanks(self.scaling_config), "failure_policy": policy}
            controller = kind(**{**parts, **own})
            quieten(logging.WARNING)
            self.run(controller.run())
            return controller.get_result()

    return LeanTrainer


def _forgiving(is_no_failure: Callable[[BaseException], bool]) -> type[Any]:
    """A failure policy that begins anew as often as ranks ask for it, and does not count that."""
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    class Forgiving(DefaultFailurePolicy):
        def make_decision(self, training_failed_error: Any) -> FailureDecision:
            if any(map(is_no_failure, causes(training_failed_error))):
                return FailureDecision.RETRY
            return super().make_decision(training_failed_error)

    return Forgiving


def _without_an_actor(method: FunctionType) -> FunctionType:
    """The same method that sees another `ray`, by which the calling process is no actor and may ask which it is."""
    ray = method.__globals__["ray"]

    class Ray:
        @staticmethod
        def get_runtime_context() -> Any:
            return SimpleNamespace(current_actor=None)

        def __getattr__(self, name: str) -> Any:
            return getattr(ray, name)

    return seeing(method, ray=Ray())


def seeing(method: Any, **changed: Any) -> FunctionType:
    """The same function, for which these of its module's names stand for something else."""
    names = {**method.__globals__, **changed}
    own = FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    own.__kwdefaults__ = method.__kwdefaults__
    return own


RAY_TRAIN = Contract(
    does="the ranks' control",
    needs=(
        "ray.train.torch:TorchTrainer._create_default_callbacks",
        "ray.train.torch:TorchTrainer._initialize_and_run_controller",
        f"{INTERNAL}.callbacks.datasets:DatasetsCallback",
        f"{INTERNAL}.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
        f"{INTERNAL}.constants:get_env_vars_to_propagate",
        f"{INTERNAL}.execution.callback:WorkerCallback.after_init_train_context",
        f"{INTERNAL}.execution.controller:TrainController with scaling_policy failure_policy callbacks train_fn_ref",
        f"{INTERNAL}.execution.failure_handling:FailureDecision.RETRY",
        f"{INTERNAL}.execution.controller:TrainController.run",
        f"{INTERNAL}.execution.controller:TrainController.get_result",
        f"{INTERNAL}.execution.scaling_policy.fixed:FixedScalingPolicy.after_controller_start",
        f"{INTERNAL}.execution.worker_group.worker:RayTrainWorker",
        f"{INTERNAL}.exceptions:UserExceptionWithTraceback._base_exc",
        f"{INTERNAL}.logging.patch_print:_original_print",
        "ray._private.auto_init_hook:enable_auto_connect",
    ),
    looked_up={
        "ray.train.torch:TorchTrainer._initialize_and_run_controller": "ray.train.v2.api.data_parallel_trainer",
        "ray.train.torch:TorchTrainer._create_default_callbacks": "ray.train.v2.api.data_parallel_trainer",
        f"{INTERNAL}.execution.controller:TrainController.worker_group_cls": (
            f"{INTERNAL}.execution.controller.controller"
        ),
        f"{INTERNAL}.execution.failure_handling:DefaultFailurePolicy.make_decision": (
            f"{INTERNAL}.execution.controller.controller"
        ),
        f"{INTERNAL}.execution.scaling_policy.fixed:FixedScalingPolicy._maybe_send_resource_request": (
            f"{INTERNAL}.execution.scaling_policy.fixed"
        ),
        f"{INTERNAL}.execution.worker_group:WorkerGroup._init_train_context_on_workers": (
            f"{INTERNAL}.execution.worker_group.worker_group"
        ),
        f"{INTERNAL}.execution.worker_group:WorkerGroup._get_worker_runtime_env": (
            f"{INTERNAL}.execution.worker_group.worker_group"
        ),
        "ray.runtime_context:RuntimeContext.current_actor": f"{INTERNAL}.execution.worker_group.worker_group",
        "ray._private.auto_init_hook:enable_auto_connect": "ray._private.auto_init_hook",
    },
    proof=lean_trainer,
    buys="four actors and a new process a rank less at the start, one to two seconds each; a stop that does not wait",
    instead="its controller in an actor of its own, and new processes for the ranks",
)


def trainer_class(public: bool) -> type[Any]:
    """TorchTrainer, or a leaner one (see `lean_trainer`)."""
    from ray.train.torch import TorchTrainer

    return lean_trainer() if RAY_TRAIN.holds(public) else TorchTrainer


def causes(error: Any) -> list[BaseException]:
    """What the ranks raised, of a TrainingFailedError; the error itself where no rank raised anything."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    return [getattr(failure, "_base_exc", failure) for failure in failures]


def quieten(level: int) -> None:
    """Ray Train's log on this process's terminal, from `level` on; what it writes to files of the Ray session stays,
    but for its traceback of every rank that has died."""
    logging.getLogger(f"{INTERNAL}.callbacks.backend_setup").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.train").handlers:
        if isinstance(handler, logging.StreamHandler):  # the others write to those files
            handler.setLevel(level)


class NoNewRay:
    """While a thread of this process may go on without its Ray: Ray's functions start no other for it."""

    def __init__(self, public: bool) -> None:
        self._left, self._public = False, public

    def begin(self) -> None:
        if RAY_TRAIN.holds(self._public):
            from ray._private import auto_init_hook

            self._left = auto_init_hook.enable_auto_connect
            auto_init_hook.enable_auto_connect = False

    def end(self) -> None:
        if self._left:
            from ray._private import auto_init_hook

            auto_init_hook.enable_auto_connect = True
