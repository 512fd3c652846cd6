"""The process that owns one Ray node: python -m raytrain.bootstrap.node_process, driven by `node.RayNode`.

The first line on standard input is a NodeSpec as JSON, the following are questions; each is answered by a line on
standard output. A line `ended` comes by itself when one of the node's processes dies, a line `note` for a person to
read. When standard input closes, be it that the bootstrap was killed, this process ends all that it started and what it
was told to guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from typing import Any, TextIO

import psutil

from raytrain.cluster.environment import emulated_gpus, public_ray, set_environment
from raytrain.cluster.guardian import family, kill
from raytrain.cluster.hardware import usable_cpus
from raytrain.cluster.topology import EMULATED_GPU, EMULATED_LABEL
from raytrain.errors import one_line
from raytrain.ray_internals.devices import COUNT, usable_gpus
from raytrain.ray_internals.node import HOST_NODE, HostNode, Wanted, prepare_node, start_node

WATCH_EVERY_S = 0.5
VITAL = ("gcs_server", "raylet")  # the cluster lives on without its dashboard or log monitor
COORDINATOR_MEMORY_BYTES = 1  # Ray wants some; no rank fits


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints goes to the log
    prepare_node(public_ray())  # while the other hosts are being found
    questions = iter(sys.stdin)
    spec = json.loads(next(questions, "null"))
    if spec is None:
        return
    try:
        node = _start(spec)
    except Exception as error:  # noqa: BLE001 - whatever it is, the bootstrap must hear it
        _say(answers, error=f"{type(error).__name__}: {one_line(error, 500)}")
        raise
    _say(answers, **node.facts(), number=spec["number"])
    for contract in () if public_ray() else (HOST_NODE, COUNT):
        if (words := contract.words()) is not None:
            _say(answers, note=words)
    threading.Thread(target=_watch, args=(node, answers), daemon=True).start()
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
            _say(answers, **_answer(node, question["ask"]), number=question["number"])
    left = family([process.pid for process in guarded if process.is_running()])
    kill([process for process in left if process.pid != os.getpid()], wait_s=1)
    shutil.rmtree(spec["folder"], ignore_errors=True)


def _say(answers: TextIO, **message: Any) -> None:
    answers.write(json.dumps(message) + "\n")


def _start(spec: dict[str, Any]) -> HostNode:
    set_environment(spec["environment"])
    emulated = {} if spec["coordinator"] or not emulated_gpus() else {EMULATED_GPU: emulated_gpus()}
    wanted = Wanted(
        head=spec["head"],
        address=spec["address"],
        head_address=spec["head_address"],
        name=spec["labels"].get("raytrain-host", spec["address"]),
        cpus=usable_cpus() if spec["cpus"] is None else spec["cpus"],
        gpus=usable_gpus(public_ray()) if spec["gpus"] is None else spec["gpus"],
        memory=COORDINATOR_MEMORY_BYTES if spec["coordinator"] else None,
        resources=spec["resources"] | emulated,
        labels=spec["labels"] | ({EMULATED_LABEL: "true"} if emulated else {}),
        dashboard=spec["dashboard"],
    )
    return start_node(wanted, public_ray())


def _serve(node: HostNode, dashboard: str | None, answers: TextIO) -> None:
    """Start the server on the head."""
    try:
        if where := node.serve(dashboard):
            _say(answers, note=f"dashboard at http://{where}; it asks for the token")
    except Exception as error:  # noqa: BLE001 - the job does not need it
        _say(answers, note=f"no dashboard: {one_line(error, 300)}")
    threading.Event().wait()  # the kernel ends what this thread has started when this thread ends


def _watch(node: HostNode, answers: TextIO) -> None:
    seen: set[str] = set()
    while True:
        time.sleep(WATCH_EVERY_S)
        for kind, code in node.dead():
            if kind not in seen:
                seen.add(kind)
                text = f"Ray's {kind} ended with code {code}"
                _say(answers, **({"ended": text} if kind in VITAL else {"note": text}))


def _answer(node: HostNode, question: str) -> dict[str, Any]:
    try:
        if question == "nodes":
            return {"nodes": node.nodes()}
        return {"alive": [found["NodeID"] for found in node.nodes() if found["Alive"]], "ranks": node.ranks()}
    except Exception as error:  # noqa: BLE001 - the bootstrap decides what a cluster that does not answer means
        return {"error": f"{type(error).__name__}: {one_line(error, 300)}"}


if __name__ == "__main__":
    main()
