"""One Ray node of this host, in a process of its own (`node_process`), and what can be asked about the cluster."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raytrain.errors import ClusterError

STARTING_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 30.0
LINE_BYTES = 1 << 24  # a cluster of many nodes is one line


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """What to start.

    Attributes:
        address: this host's own.
        head_address: `host:port` of the head's GCS; this host's own when it is the head.
        environment: what was found out about this host since its process started.
        cpus, gpus: what Ray may hand out; None for what the host has.
        coordinator: nothing that asks for memory runs here either.
        dashboard: `host:port` to serve it at, on the head; None for none.
        folder: the bootstrap's private one, to be removed should the bootstrap be killed.
    """

    head: bool
    address: str
    head_address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: int | None = None
    gpus: int | None = None
    coordinator: bool = False
    dashboard: str | None = None
    folder: str = ""


class RayNode:
    """The handle of a node's process. It imports Ray as soon as it is made, and starts the node when told to.

    Attributes:
        facts: of the node that was started: `node_id`, `cpus`, `gpus`.
        ended: set to the reason when a Ray process of this node ends by itself.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path, say: Callable[[str], None]):
        self.process, self._say = process, say
        self.facts: dict[str, Any] = {}
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._log = log
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._asking, self._asked = asyncio.Lock(), 0
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def prepare(cls, environment: Mapping[str, str], log: Path, say: Callable[[str], None]) -> RayNode:
        """Start the process; its own messages go to the file `log`, what a person should read to `say`."""
        with open(log, "wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "raytrain.bootstrap.node_process",
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                limit=LINE_BYTES,
            )
        return cls(process, log, say)

    async def start(self, spec: NodeSpec, timeout_s: float = STARTING_TIMEOUT_S) -> None:
        """Start the node and wait until the cluster knows it.

        Raises:
            ClusterError: it did not start; the last cause is in the message.
        """
        self.facts = await self._ask(asdict(spec), max(min(timeout_s, STARTING_TIMEOUT_S), 1.0))

    def guard(self, pid: int) -> None:
        """Should this process be killed, the node's process ends `pid` and all below it with the node."""
        self._write({"guard": pid})

    def serve(self, dashboard: str | None) -> None:
        """Start the head's server, with a dashboard at `host:port` or without any; nothing waits for it."""
        self._write({"serve": dashboard})

    async def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes as `ray.nodes()` has them."""
        return (await self._ask({"ask": "nodes"}, ANSWER_TIMEOUT_S))["nodes"]

    async def census(self) -> tuple[set[str], dict[str, int]]:
        """The ids of the nodes that Ray counts as alive; node id -> living training ranks of Ray Train on it."""
        answer = await self._ask({"ask": "census"}, ANSWER_TIMEOUT_S)
        return set(answer["alive"]), answer["ranks"]

    async def _ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        async with self._asking:
            self._asked += 1
            try:
                self._write({**question, "number": self._asked})
                answer = await asyncio.wait_for(self._answer(self._asked), timeout_s)
            except TimeoutError:
                raise ClusterError(f"Ray on this host did not answer within {timeout_s:g} s: {self._last()}") from None
            except OSError:
                answer = {"error": "its process is gone"}
        if "error" in answer:
            raise ClusterError(f"Ray on this host failed: {answer['error'] or self._last()}")
        return answer

    async def _answer(self, number: int) -> dict[str, Any]:
        """To this question; one that comes too late for an earlier one is dropped."""
        while True:
            answer = await self._answers.get()
            if answer.get("number", number) == number:
                return answer

    def _write(self, message: dict[str, Any]) -> None:
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _listen(self) -> None:
        while line := await self.process.stdout.readline():
            message = json.loads(line)
            if "ended" in message:
                self._end(message["ended"])
            elif "note" in message:
                self._say(message["note"])
            else:
                self._answers.put_nowait(message)
        self._answers.put_nowait({"error": ""})
        self._end(self._last())

    def _end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def _last(self) -> str:
        """The last thing its process wrote."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")
