"""The process that owns one Ray node: python -m raytrain.bootstrap.node_process, driven by `node.RayNode`.

The first line on standard input is a NodeSpec as JSON, the following are questions; each is answered by a line on
standard output. A line `ended` comes by itself when one of the node's processes dies, a line `note` for a person to
read. When standard input closes, be it
that the bootstrap was killed, this process ends all that it started and what it was told to guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from typing import Any, TextIO

import psutil

from raytrain.cluster.environment import set_environment
from raytrain.cluster.guardian import family, kill
from raytrain.errors import one_line

WATCH_EVERY_S = 0.5
RANK_CLASSES = ("RayTrainWorker", "_RayTrainWorker")
VITAL = ("gcs_server", "raylet")  # the cluster lives on without its dashboard or log monitor
COORDINATOR_MEMORY_BYTES = 1  # Ray wants some; no rank fits


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints goes to the log
    import ray._private.node  # noqa: F401 - the slow part, while the other hosts are being found

    questions = iter(sys.stdin)
    spec = json.loads(next(questions, "null"))
    if spec is None:
        return
    try:
        node = _start(spec)
    except Exception as error:  # noqa: BLE001 - whatever it is, the bootstrap must hear it
        _say(answers, error=f"{type(error).__name__}: {one_line(error, 500)}")
        raise
    _say(answers, **_facts(node), number=spec["number"])
    threading.Thread(target=_watch, args=(node, answers), daemon=True).start()
    state = _state(spec["head_address"])
    guarded = [psutil.Process()]
    for line in questions:
        question = json.loads(line)
        if "guard" in question:
            with contextlib.suppress(psutil.NoSuchProcess):
                guarded.append(psutil.Process(question["guard"]))
        elif "serve" in question:
            wanted = (node, question["serve"], answers)
            threading.Thread(target=_serve, args=wanted, daemon=True).start()
        else:
            _say(answers, **_answer(state, question["ask"]), number=question["number"])
    left = family([process.pid for process in guarded if process.is_running()])
    kill([process for process in left if process.pid != os.getpid()], wait_s=1)
    shutil.rmtree(spec["folder"], ignore_errors=True)


def _say(answers: TextIO, **message: Any) -> None:
    answers.write(json.dumps(message) + "\n")


def _start(spec: dict[str, Any]) -> Any:
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    from raytrain.cluster.environment import emulated_gpus
    from raytrain.cluster.hardware import usable_cpus
    from raytrain.cluster.topology import EMULATED_GPU, EMULATED_LABEL
    from raytrain.ray_internals.devices import usable_gpus

    set_environment(spec["environment"])
    emulated = {} if spec["coordinator"] or not emulated_gpus() else {EMULATED_GPU: emulated_gpus()}
    labels = spec["labels"] | ({EMULATED_LABEL: "true"} if emulated else {})
    gpus, cpus = spec["gpus"], spec["cpus"]
    if gpus is None:
        gpus = usable_gpus()
    host, _, port = (spec["dashboard"] or "127.0.0.1:0").rpartition(":")
    parameters = RayParams(
        node_ip_address=spec["address"],
        node_name=spec["labels"].get("raytrain-host", spec["address"]),
        num_cpus=usable_cpus() if cpus is None else cpus,
        num_gpus=gpus,
        memory=COORDINATOR_MEMORY_BYTES if spec["coordinator"] else None,
        resources=spec["resources"] | emulated,
        labels=labels,
        include_dashboard=spec["dashboard"] is not None,
        dashboard_host=host,
        dashboard_port=int(port) or None,
        no_monitor=True,  # there is nothing to scale; Ray Client has no port either unless asked for
    )
    if spec["head"]:
        parameters.gcs_server_port = int(spec["head_address"].rpartition(":")[2])
        return _server_later(Node)(parameters, head=True, shutdown_at_exit=False)
    parameters.gcs_address = spec["head_address"]
    return Node(parameters, head=False, shutdown_at_exit=False, connect_only=False)


def _server_later(kind: type) -> type:
    """The dashboard's server takes seconds, and nothing but a person waits for it: `_serve` starts it."""

    class Head(kind):
        def start_api_server(self, **_: Any) -> None:
            self._webui_url = ""

    return Head


def _serve(node: Any, dashboard: str | None, answers: TextIO) -> None:
    """Start the server on the head.

    Without a dashboard it starts too, with next to nothing inside: Ray Train asks it whether its controller is alive
    and waits twelve seconds at the end of a run when there is none.
    """
    from ray._private.node import Node

    try:
        wanted = dashboard is not None
        Node.start_api_server(node, include_dashboard=wanted, raise_on_failure=wanted)
        if wanted:
            _say(answers, note=f"dashboard at http://{dashboard}; it asks for the token")
    except Exception as error:  # noqa: BLE001 - the job does not need it
        _say(answers, note=f"no dashboard: {one_line(error, 300)}")
    threading.Event().wait()  # the kernel ends what this thread has started when this thread ends


def _facts(node: Any) -> dict[str, Any]:
    spec = node.get_resource_and_label_spec()
    return {"node_id": node.node_id, "cpus": spec.num_cpus, "gpus": spec.num_gpus}


def _watch(node: Any, answers: TextIO) -> None:
    seen: set[str] = set()
    while True:
        time.sleep(WATCH_EVERY_S)
        dead: list[tuple[str, Any]] = []
        with contextlib.suppress(RuntimeError):  # the server is being added to them
            dead = node.dead_processes()
        for kind, process in dead:
            if kind not in seen:
                seen.add(kind)
                text = f"Ray's {kind} ended with code {process.returncode}"
                _say(answers, **({"ended": text} if kind in VITAL else {"note": text}))


def _state(address: str) -> Any:
    from ray._private.services import _get_gcs_client_options
    from ray._private.state import GlobalState

    state = GlobalState()
    state._initialize_global_state(_get_gcs_client_options(address))
    return state


def _answer(state: Any, question: str) -> dict[str, Any]:
    try:
        if question == "nodes":
            return {"nodes": state.node_table()}
        alive = [found["NodeID"] for found in state.node_table() if found["Alive"]]
        actors = state.actor_table(None, actor_state_name="ALIVE").values()
        ranks = Counter(a["Address"]["NodeID"] for a in actors if a["ActorClassName"] in RANK_CLASSES)
        return {"alive": alive, "ranks": ranks}
    except Exception as error:  # noqa: BLE001 - the bootstrap decides what a cluster that does not answer means
        return {"error": f"{type(error).__name__}: {one_line(error, 300)}"}


if __name__ == "__main__":
    main()
