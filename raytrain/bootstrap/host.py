"""What the life of a host needs whether it is the head or not: options, token, Ray node, signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from raytrain import __version__
from raytrain.bootstrap.node import NodeSpec, RayNode
from raytrain.bootstrap.roster import Roster
from raytrain.cluster import environment, network
from raytrain.cluster.topology import GROUP_LABEL, HOST_LABEL, INSTANCE_TYPE_LABEL
from raytrain.errors import Stopped
from raytrain.ray_internals.loopback import LOOPBACK

T = TypeVar("T")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
REAP_EVERY_S = 5.0
KILL_ROUNDS, KILL_ROUND_S = 40, 0.05


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; the same on every host.

    Attributes:
        program: the user's words, from the program on.
        head_group: None for the first group with GPUs, else the first.
        head_cpus, head_gpus: what Ray may hand out on the head; None for what it has.
        port: of Ray's GCS on the head; the next one is the bootstrap's own.
        dashboard: `host:port`, None for none.
        prometheus: a binary, a release archive, or `path` for the one on the PATH; None for none.
        connect: whether the program starts connected to Ray.
        remote_write: where Prometheus sends on what it collects.
    """

    program: tuple[str, ...]
    head_group: str | None = None
    head_cpus: int | None = None
    head_gpus: int | None = None
    join_timeout_s: float = 300.0
    grace_s: float = 100.0
    linger_s: float = 0.0
    port: int = 6379
    token_file: Path | None = None
    insecure: bool = False
    connect: bool = False
    efa: str = "auto"
    dashboard: str | None = None
    prometheus: str | None = None
    remote_write: str | None = None
    remote_write_region: str | None = None
    remote_write_user: str | None = None
    remote_write_password_file: Path | None = None
    as_json: bool = False


@dataclass(frozen=True)
class Outcome:
    """How the job ended: the exit status of every host, and the text of the failure file."""

    status: int
    failure: str | None = None


@dataclass
class ThisHost:
    """One host while its bootstrap runs.

    Attributes:
        token: the job's; empty for none.
        folder: private to this user, gone at the end.
        stopped: the number of the first SIGTERM or Ctrl-C of the job, on whichever host it came.
        impatient: set by a second one on this host.
        awaited: children that asyncio waits for itself.
        background: tasks that end with the host.
    """

    options: Options
    roster: Roster
    token: str
    folder: Path
    started: float = field(default_factory=time.monotonic)
    stopped: asyncio.Future[int] = field(init=False)
    impatient: asyncio.Event = field(init=False)
    node: RayNode = field(init=False)
    awaited: set[int] = field(default_factory=set)
    background: list[asyncio.Task[None]] = field(default_factory=list)
    _own_signals: int = 0

    async def begin(self, heard: Sequence[int] = ()) -> None:
        """Listen for signals, adopt orphans, and start the process of the Ray node, which takes its time.

        Args:
            heard: signals that came before.
        """
        self.stopped = asyncio.get_running_loop().create_future()
        self.impatient = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._heard, number)
        for number in heard:
            self._heard(number)
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.background.append(asyncio.create_task(self._reap_for_ever()))
        if self.token:
            with open(self.token_path, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(self.token)
        self.node = await RayNode.prepare(self.environment(), self.folder / "node.log", self.say)
        self.awaited.add(self.node.process.pid)

    @property
    def name(self) -> str:
        return self.roster.me.name

    @property
    def token_path(self) -> Path:
        return self.folder / "token"

    @property
    def agreed(self) -> str:
        """What every host of the job must agree about, in short."""
        names = sorted(f"{m.name}={m.group}" for m in self.roster.members)
        words = (__version__, self.roster.head.name, str(self.options.port), *names)
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def say(self, message: str, **facts: object) -> None:
        """A line for the log, on standard error."""
        since = time.monotonic() - self.started
        if self.options.as_json:
            line = json.dumps({"host": self.name, "seconds": round(since, 2), "message": message, **facts})
        else:
            line = f"raytrain [{self.name} {since:6.1f} s] {message}"
        with contextlib.suppress(OSError):  # nobody reads any more, and the job goes on
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - rich would wrap the line

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """For Ray's processes and the program on this host."""
        security = {"RAY_AUTH_MODE": "disabled"}
        if self.token:
            security = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}
        return environment.child_environment({**security, **(changes or {})})

    def collective_settings(self, interface: str | None) -> dict[str, str]:
        """For NCCL, gloo and libfabric here; what the user has set stays."""
        found = network.collective_settings(interface, self.options.efa, network.efa_devices())
        return environment.user_set(found)

    def node_spec(self, address: str, head_address: str, interface: str | None) -> NodeSpec:
        me, options = self.roster.me, self.options
        head = self.roster.am_head
        labels = {
            GROUP_LABEL: network.label(me.group),
            INSTANCE_TYPE_LABEL: me.instance_type,
            HOST_LABEL: network.label(me.name),
        }
        return NodeSpec(
            head=head,
            address=address,
            head_address=head_address,
            labels={name: value for name, value in labels.items() if value},
            resources={f"group:{me.group}": 1, **({f"instance:{me.instance_type}": 1} if me.instance_type else {})},
            # without the address, Ray's own helpers look for a cluster on their host, for 20 s if need be
            environment={
                "RAY_ADDRESS": head_address,
                **(environment.LOCALHOST_KEPT if address == LOOPBACK else {}),
                **self.collective_settings(interface),
            },
            cpus=options.head_cpus if head else None,
            gpus=options.head_gpus if head else None,
            coordinator=head and options.head_cpus == 0 and options.head_gpus == 0,
            dashboard=options.dashboard if head else None,
            folder=str(self.folder),
        )

    def stop(self, number: int) -> None:
        """The job has been asked to stop."""
        if not self.stopped.done():
            self.stopped.set_result(number)

    def _heard(self, number: int) -> None:
        if self._own_signals:
            self.impatient.set()
        self._own_signals += 1  # another host may have told of the same stop already
        self.stop(number)
        self.say(f"{signal.Signals(number).name} received")

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """Do `work`, or give it up when the job is asked to stop.

        Raises:
            Stopped: it was.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                number = self.stopped.result()
                raise Stopped(f"stopped by {signal.Signals(number).name} before the program started", number)
            return task.result()
        finally:
            task.cancel()

    def reap(self) -> None:
        """Collect the exit status of orphans that this process has adopted."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                    if child.pid not in self.awaited and child.status() == psutil.STATUS_ZOMBIE:
                        os.waitpid(child.pid, os.WNOHANG)

    async def _reap_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            self.reap()

    async def end(self) -> None:
        """End every process below this one, orphans included, by process id; nothing is left to drain."""
        for task in self.background:
            task.cancel()
        for _ in range(KILL_ROUNDS):
            self.reap()
            left = [p for p in psutil.Process().children(recursive=True) if _lives(p)]
            if not left:
                return
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.sleep(KILL_ROUND_S)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
