"""Generator tasks over the cluster: plan blocks in, references to finished blocks out.

By Ray Data, whose executor keeps the tasks' outputs within bounds, without the helpers that raytrain has no use for;
or, in the public way, by generator tasks of Ray itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raytrain.errors import TrainingError
from raytrain.ray_internals.contract import Contract

FULL_PAUSE_S = 0.05
PIECE_S = 2.0  # of a public task: long beside what starting one costs, short beside a rank's patience
LOOK_EVERY_S = 0.1
DEFAULT_STOCK_BYTES = 512 << 20  # of the public way, where no host says how large its object store is


class Stock(Protocol):
    """How much may lie ready (see data.stock)."""

    most_bytes: int

    def watch(self) -> Any:
        """For one execution; its `room(tasks, block_bytes, ready, made)` are the bytes that may be collected now."""


@dataclass(frozen=True)
class TaskWork:
    """What to run, and how much of it at once.

    Attributes:
        function: called in a worker with a plan block (an Arrow table of places) and `arguments`; yields a block, a
            table of one row, for each place, in order.
        lanes: CPUs that run it.
        task_args: Ray task options that say where, and Ray Data's `concurrency`.
        blocks_ahead: that a task may be ahead of whoever collects.
        stock: how much may lie ready; None where nobody knows the stores' sizes.
        lost: whether no host is left that may run it, for which Ray would wait for ever; asked ten times a second.
    """

    function: Callable[..., Iterator[Any]]
    arguments: dict[str, Any]
    lanes: int
    task_args: dict[str, Any]
    blocks_ahead: int
    stock: Stock | None = None
    lost: Callable[[], bool] | None = None


class _Lost(Exception):
    """No host is left."""


@dataclass(frozen=True)
class Block:
    """A block that is ready.

    Attributes:
        task, number: which plan block, and which of its places.
        reference: to the block in the object store.
        wall_s: that making it took.
    """

    task: int
    number: int
    reference: Any
    wall_s: float
    num_bytes: int


class _Nobody:
    """An actor handle whose calls go nowhere."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_: Any, **__: Any) -> None:
        pass


def _whole_cluster() -> Any:
    """An autoscaler of Ray Data's that gives an execution the cluster as it is."""
    import ray
    from ray.data._internal.cluster_autoscaler.base_cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution.interfaces import ExecutionResources

    class WholeCluster(ClusterAutoscaler):
        """Asks for no nodes: who attaches to a cluster that grows finds tasks waiting, and grows it."""

        def try_trigger_scaling(self) -> None:
            pass

        def on_executor_shutdown(self) -> None:
            pass

        def get_total_resources(self) -> ExecutionResources:
            _asked.add("the cluster's size")
            return ExecutionResources.from_resource_dict(ray.cluster_resources())

    return WholeCluster()


EXECUTION = "ray.data._internal.execution"
RAY_DATA = Contract(
    does="preprocessing",
    needs=(
        "ray.data:Dataset.iter_internal_ref_bundles",
        "ray.data:DataContext()._max_num_blocks_in_streaming_gen_buffer",
        f"{EXECUTION}.interfaces:RefBundle.blocks",
        f"{EXECUTION}.interfaces:BlockEntry.ref",
        f"{EXECUTION}.interfaces:BlockEntry.metadata",
        "ray.data.block:BlockMetadata.exec_stats",
        "ray.data.block:BlockMetadata.size_bytes",
        "ray.data.block:BlockExecStats.task_idx",
        "ray.data.block:BlockExecStats.block_transform_time_s|udf_time_s",
        f"{EXECUTION}.backpressure_policy:ENABLED_BACKPRESSURE_POLICIES",
        f"{EXECUTION}.backpressure_policy:ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY",
        f"{EXECUTION}.resource_manager:ResourceManager.set_external_consumer_bytes",
        f"{EXECUTION}.streaming_executor_state:OpState.output_queue_bytes",
        f"{EXECUTION}.interfaces:PhysicalOperator.output_dependencies",
        f"{EXECUTION}.interfaces:PhysicalOperator.num_active_tasks",
        f"{EXECUTION}.interfaces:PhysicalOperator.metrics",
        f"{EXECUTION}.interfaces.op_runtime_metrics:OpRuntimeMetrics.average_bytes_per_output",
        f"{EXECUTION}.interfaces.op_runtime_metrics:OpRuntimeMetrics.bytes_task_outputs_generated",
        f"{EXECUTION}.interfaces:ExecutionResources.from_resource_dict",
        "ray.data._internal.cluster_autoscaler.base_cluster_autoscaler:ClusterAutoscaler",
    ),
    looked_up={
        f"{EXECUTION}.streaming_executor:create_cluster_autoscaler": f"{EXECUTION}.streaming_executor",
        "ray.data._internal.stats:get_or_create_stats_actor": "ray.data._internal.stats",
        f"{EXECUTION}.backpressure_policy:BackpressurePolicy.max_task_output_bytes_to_read": (
            f"{EXECUTION}.streaming_executor_state"
        ),
        f"{EXECUTION}.interfaces.op_runtime_metrics:OpRuntimeMetrics._max_num_blocks_in_streaming_gen_buffer": (
            f"{EXECUTION}.operators.task_pool_map_operator"
        ),
    },
    proof=_whole_cluster,
    buys="all CPUs from the first second on, 2 s less to the first batch (no helper actors), and a bounded stock: "
    "0.998 of the ideal rate with 36 CPU nodes, 0.89 without",
    instead="short generator tasks, one more exchange with a worker every two seconds",
)
_asked: set[str] = set()  # what of ours Ray Data has used


def prepare_tasks(collects_metrics: bool, public: bool) -> None:
    """Import what runs tasks and change it for this process, which is one of raytrain's own; again changes nothing.

    Every execution of Ray Data asks an actor which part of the cluster it may have, and looks at the answer a second
    later: until then it runs one task, whatever the cluster's size. Here it may have all of it, at once. Another actor
    keeps figures for the dashboard; it is left out where nobody collects them.
    """
    if not RAY_DATA.holds(public):
        return
    from ray.data._internal import stats
    from ray.data._internal.execution import streaming_executor

    streaming_executor.create_cluster_autoscaler = lambda *_, **__: _whole_cluster()
    if not collects_metrics:
        stats.get_or_create_stats_actor = _Nobody


def run_tasks(work: TaskWork, tasks: Sequence[Any], public: bool) -> Iterator[Block]:
    """The blocks of plan blocks `tasks` (Arrow tables, a row a place), as they are ready.

    Some may not come: a task that Ray cancels ends early and is not reported as failed. None does once no host is left
    (see TaskWork.lost).

    Raises:
        Exception: what `work.function` raised, within Ray's own exceptions (see `cause`).
        TrainingError: Ray does not do what it was told.
    """
    try:
        yield from _by_ray_data(work, tasks) if RAY_DATA.holds(public) else _by_ray(work, tasks)
    except Exception as error:  # noqa: BLE001 - Ray Data wraps what its executor meets
        if not isinstance(cause(error), _Lost):
            raise


def cause(error: BaseException) -> BaseException:
    """What is below Ray's wrappers."""
    while (below := getattr(error, "cause", None) or error.__cause__) is not None:
        error = below
    return error


def _by_ray_data(work: TaskWork, tasks: Sequence[Any]) -> Iterator[Block]:
    numbers = [0] * len(tasks)
    dataset = _dataset(work, tasks)
    for bundle in dataset.iter_internal_ref_bundles():
        _check_that_ray_data_asked(work)
        for entry in bundle.blocks:
            # Task i of the execution runs plan block i, and its blocks come in the order of its places. The ranks
            # compare with the place in the block.
            stats = entry.metadata.exec_stats
            wall_s = getattr(stats, "block_transform_time_s", None) or getattr(stats, "udf_time_s", None) or 0.0
            number = numbers[stats.task_idx]
            numbers[stats.task_idx] += 1
            yield Block(stats.task_idx, number, entry.ref, wall_s, entry.metadata.size_bytes)


def _check_that_ray_data_asked(work: TaskWork) -> None:
    wanted = ("the cluster's size", *(("the stock's bound",) if work.stock else ()))
    if unused := [each for each in wanted if each not in _asked]:
        raise TrainingError(
            f"Ray Data has not asked raytrain for {unused[0]}; set RAYTRAIN_PUBLIC_RAY=1 to go without, which is slower"
        )


def _dataset(work: TaskWork, tasks: Sequence[Any]) -> Any:
    """The Ray Data pipeline: places in, blocks of ready batches out."""
    import ray.data
    from ray.data._internal.execution import backpressure_policy as policies

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block has one row; this makes every row a block of its own, at once
    context._max_num_blocks_in_streaming_gen_buffer = work.blocks_ahead
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    own = [_Bounded(work.stock)] if work.stock is not None else []
    own += [_Watched(work.lost)] if work.lost is not None else []
    if own:
        enabled = [*policies.ENABLED_BACKPRESSURE_POLICIES, *own]
        context.set_config(policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, enabled)
    with ray.data.DataContext.current(context):
        return ray.data.from_blocks(list(tasks)).map_batches(  # from_arrow would ask tasks what it knows
            work.function,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=1,
            fn_kwargs=work.arguments,
            **work.task_args,
        )


@dataclass(frozen=True)
class _Bounded:
    """Makes Ray Data a backpressure policy: nothing more is taken off the tasks while enough lies ready."""

    stock: Stock

    def __call__(self, _context: Any, topology: Any, resource_manager: Any) -> _Policy:
        _asked.add("the stock's bound")
        # else Ray Data thinks that nobody takes, and holds nothing back
        resource_manager.set_external_consumer_bytes(0)
        return _Policy(topology, self.stock.watch())


class _Policy:
    """What Ray Data asks of a policy (ray.data._internal.execution.backpressure_policy.BackpressurePolicy)."""

    name = "raytrain's stock"

    def __init__(self, topology: Any, watch: Any):
        self._topology, self._watch = topology, watch

    def can_add_input(self, _operator: Any) -> bool:
        return True

    def max_task_output_bytes_to_read(self, operator: Any) -> int | None:
        if operator.output_dependencies:  # not the last operator: the plan's places, which are small
            return None
        metrics, ready = operator.metrics, self._topology[operator].output_queue_bytes()
        tasks, block_bytes = operator.num_active_tasks(), metrics.average_bytes_per_output or 0
        room = self._watch.room(tasks, block_bytes, ready, metrics.bytes_task_outputs_generated)
        if not room:
            time.sleep(FULL_PAUSE_S)  # Ray Data would look again at once, and keep a core busy by it
        return room


@dataclass(frozen=True)
class _Watched:
    """Makes Ray Data a policy that ends an execution which no host is left for: Ray Data asks its policies in every
    round, and hands what they raise to whoever takes."""

    lost: Callable[[], bool]

    def __call__(self, *_: Any) -> _Watched:
        return self

    @property
    def name(self) -> str:
        return "raytrain's hosts"

    def can_add_input(self, _operator: Any) -> bool:
        return True

    def max_task_output_bytes_to_read(self, _operator: Any) -> None:
        if self.lost():
            raise _Lost


def _by_ray(work: TaskWork, tasks: Sequence[Any]) -> Iterator[Block]:
    """Each lane runs one plan block after the other, in pieces: so many places a task of Ray's that what all lanes make
    before anybody looks fits into the stock. When nobody takes, no piece is started."""
    import ray

    options = {"scheduling_strategy": "SPREAD", "max_retries": -1, **work.task_args}  # as Ray Data's are
    lanes = options.pop("concurrency", work.lanes)
    remote = ray.remote(_told).options(num_returns="streaming", num_cpus=1, **options)
    waiting = [(task, 0) for task in range(len(tasks))][::-1]
    running: dict[Any, list[int]] = {}  # generator -> task, next place, and the piece's end
    wall_s, num_bytes = float("inf"), 0

    def start() -> None:
        task, first = waiting.pop()
        piece = 1
        if num_bytes:
            most = work.stock.most_bytes if work.stock else DEFAULT_STOCK_BYTES
            fits = most / lanes / num_bytes
            piece = max(int(min(PIECE_S / max(wall_s, 1e-6), fits)), 1)
        places = tasks[task].slice(first, piece)
        running[remote.remote(work.function, places, work.arguments)] = [task, first, first + len(places)]

    while waiting or running:
        if work.lost is not None and work.lost():
            raise _Lost
        while waiting and len(running) < lanes:
            start()
        ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_EVERY_S, fetch_local=False)
        for generator in ready:
            try:
                told = next(generator)
            except StopIteration:
                task, came, end = running.pop(generator)
                if came == end < len(tasks[task]):
                    waiting.append((task, end))
                continue
            made_s, made_bytes = ray.get(told)
            wall_s, num_bytes = min(wall_s, made_s), max(num_bytes, made_bytes)
            place = running[generator]
            yield Block(place[0], place[1], next(generator), made_s, made_bytes)
            place[1] += 1


def _told(function: Callable[..., Iterator[Any]], places: Any, arguments: dict[str, Any]) -> Iterator[Any]:
    """Each block of `function`, and before it what it cost: seconds and bytes."""
    began = time.perf_counter()
    for block in function(places, **arguments):
        yield time.perf_counter() - began, block.nbytes
        yield block
        began = time.perf_counter()
