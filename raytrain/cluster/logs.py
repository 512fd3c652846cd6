"""What workers print, on the driver's terminal: the user's lines and nothing of Ray's own bookkeeping.

Ray keeps every process's full output in its session folder (/tmp/ray/session_latest/logs).
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import public_ray
from raytrain.ray_internals.logs import show_worker_output
from raytrain.ray_internals.train import RANK_CLASSES, quieten

PRINTED_WITHIN_S = 1.0  # Ray looks for new lines ten times a second, for new files twice, and is late on a busy host
_RAYS_OWN = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+ [IWE] \d+ \d+\]|^Setting up process group for: ")


def forward_worker_output() -> None:
    """Replace Ray's own printing of worker output. Call it after `ray.init(log_to_driver=True)`."""
    show_worker_output(_show, public_ray())


def _show(batch: dict[str, Any]) -> None:
    text = "\n".join(visible_lines(batch))
    if text:
        print(text, file=sys.stderr if batch.get("is_err") else sys.stdout, flush=True)  # noqa: T201


def visible_lines(batch: dict[str, Any]) -> list[str]:
    """The lines of one batch of worker output that a user should see: of ranks, of CPU stages, of the raylets, and what
    raytrain itself has to say in an actor."""
    actor, task, pid = batch.get("actor_name"), batch.get("task_name"), batch.get("pid")
    if pid == "raylet":
        prefix = "ray: "
    elif actor and not actor.startswith(RANK_CLASSES):
        return [line for line in batch.get("lines", []) if line.startswith("raytrain: ")]
    elif actor:
        prefix = f"rank (pid {pid}): "
    elif task:
        prefix = f"stage (pid {pid}): "
    else:
        return []
    return [prefix + line for line in batch.get("lines", []) if line.strip() and not _RAYS_OWN.match(line)]


def frames_of(error: BaseException, hidden: Sequence[str]) -> str:
    """An error's traceback, and of what it came from, as text: without headings and without frames of packages whose
    folders are `hidden`."""
    found = traceback.TracebackException.from_exception(error)
    chain = [found]
    for each in chain:
        shown = [frame for frame in each.stack if not any(Path(frame.filename).is_relative_to(h) for h in hidden)]
        each.stack = traceback.StackSummary.from_list(shown)
        chain += [other for other in (each.__cause__, each.__context__) if other is not None]
    return "".join(line for line in found.format() if not line.startswith("Traceback (")).rstrip()


def leave_error_to_the_driver() -> None:
    """On a rank whose error the driver has been told, before it ends: Ray Train's own report of it goes to its files
    alone, and what the loop printed last has the time to get to the terminal."""
    quieten(logging.CRITICAL)
    time.sleep(PRINTED_WITHIN_S)
