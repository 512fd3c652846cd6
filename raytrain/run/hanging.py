"""Ranks that do no batch though there are some to do: what they are at is written down, and they are ended, so that Ray
Train has them begin anew."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from raytrain.record.status import RankProcess, Status

ASK = signal.SIGUSR2
ANSWER_S, QUIET_S = 5.0, 0.3  # a stack is written at once, or never
TASKS_S = 60.0
AT_FIRST = 10  # times as long until a rank has done its first batch: it makes its model, and compiles it


def listen() -> RankProcess:
    """Have this process write the stack of each of its threads when it gets `ASK`, whatever it is at: the handler is
    C's, and needs neither Python nor its lock."""
    import ray

    handle, path = tempfile.mkstemp(prefix=f"raytrain-rank-{os.getpid()}-", suffix=".stacks")
    faulthandler.register(ASK, file=handle, all_threads=True)  # the file stays open with the process
    if os.path.exists(by_number := f"/proc/{os.getpid()}/fd/{handle}"):  # where there is one, it goes with the process
        os.unlink(path)
        path = by_number
    node = ray.get_runtime_context().get_node_id()
    return RankProcess(os.getpid(), psutil.Process().create_time(), node, path)


def stacks_of(processes: Mapping[int, RankProcess]) -> dict[int, str]:
    """By rank, what the threads of processes of this host are at."""
    found = {}
    for rank, each in processes.items():
        process = _process(each)
        if process is None:
            found[rank] = "its process is gone\n"
            continue
        state = process.status()
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, ASK)
            os.kill(each.pid, signal.SIGCONT)  # one that is stopped does not answer
        told = _answer(Path(each.stacks)) or "it does not answer\n"
        found[rank] = f"process {each.pid}, {state}\n{told}"
    return found


def end(processes: Mapping[int, RankProcess]) -> None:
    """Kill processes of this host."""
    for each in processes.values():
        process = _process(each)
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(OSError):
            os.unlink(each.stacks)


def _process(known: RankProcess) -> psutil.Process | None:
    """None if it is gone, though another may have its number now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(known.pid)
        if abs(process.create_time() - known.created_at) < 1.0:
            return process
    return None


def _answer(path: Path) -> str:
    """What is in the file once it does not grow any more."""
    until, size = time.monotonic() + ANSWER_S, 0
    while time.monotonic() < until:
        time.sleep(QUIET_S)
        now = path.stat().st_size if path.exists() else 0
        if now and now == size:
            break
        size = now
    return path.read_text(errors="replace") if size else ""


class HangWatch:
    """
    Args:
        timeout_s: without a batch; None for ever.
        folder: the run's, for what the ranks were at.

    Attributes:
        told: what happened last, in a line.
    """

    def __init__(self, timeout_s: float | None, folder: Path):
        self.told: str | None = None
        self._timeout_s, self._folder = timeout_s, folder
        self._moved_s, self._done = 0.0, (-1, -1)

    def hangs(self, status: Status, now_s: float, without_hosts: bool = False) -> bool:
        """
        Args:
            now_s: by a clock that only goes forward.
            without_hosts: the ranks wait for a host to begin on.
        """
        done = status.attempts, sum(status.positions.values())
        if done != self._done or status.starved or status.stopping or without_hosts or not status.attempts:
            self._moved_s, self._done = now_s, done
        if self._timeout_s is None:
            return False
        begun = len(status.positions) > 0 and all(status.positions.values())
        return now_s - self._moved_s >= self._timeout_s * (1 if begun else AT_FIRST)

    def end_ranks(self, status: Status) -> str:
        """Write down what the ranks are at and end them. Returns `told`."""
        assert self._timeout_s is not None
        by_node: dict[str, dict[int, RankProcess]] = {}
        for rank, process in status.processes.items():
            by_node.setdefault(process.node, {})[rank] = process
        found = {rank: text for each in _on_nodes(stacks_of, by_node) for rank, text in each.items()}
        path = self._folder / f"hang-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        lines = [f"rank {rank}: {found.get(rank, 'its host does not answer')}" for rank in sorted(status.processes)]
        path.write_text("\n".join(lines), encoding="utf-8")
        self.told = (
            f"no rank has done a batch for {self._timeout_s:g} s (training.hang_timeout_s), though there are some to "
            f"do; what each was at is in {path}"
        )
        _on_nodes(end, by_node)
        self._done = (-1, -1)  # they get as much time anew
        return self.told


def _on_nodes(function: Any, by_node: Mapping[str, Any]) -> Sequence[Any]:
    """What a function returns on each node; nothing of those that do not answer."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0, enable_task_events=False)(function)
    asked = [
        task.options(label_selector={"ray.io/node-id": node}).remote(processes) for node, processes in by_node.items()
    ]
    ready, late = ray.wait(asked, num_returns=len(asked), timeout=TASKS_S) if asked else ([], [])
    for each in late:
        ray.cancel(each, force=True)
    found = []
    for each in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            found.append(ray.get(each))
    return found
