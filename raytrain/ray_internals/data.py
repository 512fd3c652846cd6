"""Ray Data without the helpers that raytrain has no use for: each is an actor that imports Ray Data first."""

from __future__ import annotations

from typing import Any


def make_ray_data_lean(collects_metrics: bool) -> None:
    """Import Ray Data and change it for this process; doing so again changes nothing.

    Every execution asks an actor which part of the cluster it may have, and looks at the answer a second later: until
    then it runs one task, whatever the cluster's size. Here it may have all of it, at once. Another actor keeps figures
    for the dashboard; it is left out where nobody collects them.
    """
    import ray
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler.base_cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.interfaces import ExecutionResources

    class WholeCluster(ClusterAutoscaler):
        """Asks for no nodes: who attaches to a cluster that grows finds tasks waiting, and grows it."""

        def try_trigger_scaling(self) -> None:
            pass

        def on_executor_shutdown(self) -> None:
            pass

        def get_total_resources(self) -> ExecutionResources:
            return ExecutionResources.from_resource_dict(ray.cluster_resources())

    streaming_executor.create_cluster_autoscaler = lambda *_, **__: WholeCluster()
    if not collects_metrics:
        stats.get_or_create_stats_actor = _Nobody


class _Nobody:
    """An actor handle whose calls go nowhere."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_: Any, **__: Any) -> None:
        pass
