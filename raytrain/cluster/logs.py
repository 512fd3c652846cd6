"""What workers print, on the driver's terminal: the user's lines and nothing of Ray's own bookkeeping.

Ray keeps every process's full output in its session folder (/tmp/ray/session_latest/logs).
"""

from __future__ import annotations

import re
import sys
from typing import Any

_OURS = ("RayTrainWorker", "_RayTrainWorker")
_RAYS_OWN = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+ [IWE] \d+ \d+\]|^Setting up process group for: ")


def forward_worker_output() -> None:
    """Replace Ray's own printing of worker output. Call it after `ray.init(log_to_driver=True)`."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler("ray_print_logs")
    dispatcher.remove_handler("raytrain")
    dispatcher.add_handler("raytrain", _show)


def _show(batch: dict[str, Any]) -> None:
    text = "\n".join(visible_lines(batch))
    if text:
        print(text, file=sys.stderr if batch.get("is_err") else sys.stdout, flush=True)  # noqa: T201


def visible_lines(batch: dict[str, Any]) -> list[str]:
    """The lines of one batch of worker output that a user should see: of ranks, of CPU stages, and of the raylets."""
    actor, task, pid = batch.get("actor_name"), batch.get("task_name"), batch.get("pid")
    if pid == "raylet":
        prefix = "ray: "
    elif actor and not actor.startswith(_OURS):
        return []
    elif actor:
        prefix = f"rank (pid {pid}): "
    elif task:
        prefix = f"stage (pid {pid}): "
    else:
        return []
    return [prefix + line for line in batch.get("lines", []) if line.strip() and not _RAYS_OWN.match(line)]
