"""What workers print, handed to raytrain; in the public way Ray prints it, and all of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from raytrain.ray_internals.contract import Contract

RAYS_PRINTER = "ray_print_logs"
WORKER_OUTPUT = Contract(
    does="workers' output",
    needs=(
        "ray._private.ray_logging:global_worker_stdstream_dispatcher.add_handler with name handler",
        "ray._private.ray_logging:global_worker_stdstream_dispatcher.remove_handler with name",
    ),
    looked_up={
        "ray._private.ray_logging:global_worker_stdstream_dispatcher": "ray._private.worker",
        RAYS_PRINTER: "ray._private.worker",
    },
    buys="a terminal with the ranks' and the stages' lines and none of Ray's own",
    instead="Ray prints every line of every worker",
)


def show_worker_output(show: Callable[[dict[str, Any]], None], public: bool) -> None:
    """Have `show` called with each batch of worker output in place of Ray's own printing.

    Call it after `ray.init(log_to_driver=True)`.
    """
    if not WORKER_OUTPUT.holds(public):
        return
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler(RAYS_PRINTER)
    dispatcher.remove_handler("raytrain")
    dispatcher.add_handler("raytrain", show)


def leave_output_to_ray() -> None:
    """As before `show_worker_output`, for the next Ray of this process."""
    if "ray._private.ray_logging" in sys.modules and not WORKER_OUTPUT.broken():
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.remove_handler("raytrain")
