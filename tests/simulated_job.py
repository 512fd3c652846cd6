"""Jobs of `raytrain bootstrap` on simulated hosts: what a test starts, waits for and looks at.

Each host is a set of Linux namespaces with its own name, address, SageMaker folder, /tmp and /dev/shm; Ray, the
toolkit and the processes are real.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import pytest
from patience import patient, wait_for

from raytrain.errors import ClusterError
from raytrain.simulate.hosts import SimulatedHost, SimulatedHosts, unavailable

needs_hosts = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
on_simulated_hosts = [needs_hosts]

TOKEN = "0123456789abcdef" * 4
TWO = {"gpu": ("ml.g5.xlarge", ["algo-1"]), "cpu": ("ml.c5.4xlarge", ["algo-2"])}
THREE = {"cpu": ("ml.c5.4xlarge", ["algo-1", "algo-3"]), "gpu": ("ml.g5.xlarge", ["algo-2"])}
FAIR = {"RAY_worker_niceness": "0"}  # as in conftest; a simulated host knows nothing of what Ray is told here
GONE_WITHIN_S = 15.0  # a teardown takes 2 s on a quiet machine; a host that nobody tells leaves after 17 s

NODES = """
import json, ray
ray.init(logging_level="warning")
nodes = [{**n["Labels"], **n["Resources"]} for n in ray.nodes() if n["Alive"]]
print("NODES", json.dumps(nodes))
"""

ONE = {"gpu": ("ml.g5.xlarge", ["algo-1"])}
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("READY", flush=True)
time.sleep(600)
"""


class Job:
    """A job on simulated hosts: what a test starts, waits for and looks at."""

    def __init__(self, hosts: SimulatedHosts, groups: Mapping[str, tuple[str, Sequence[str]]]):
        self.hosts, self.groups = hosts, groups
        hosts.place(groups)

    def write(self, name: str, text: str) -> None:
        for host in self.hosts.hosts.values():
            (host.ml / "code").mkdir(exist_ok=True)
            (host.ml / "code" / name).write_text(text)

    def start(self, *words: str, names: Sequence[str] | None = None, watch: bool = True, **environment: str) -> None:
        """`raytrain bootstrap WORDS` on all hosts, or on some."""
        command = [sys.executable, "-m", "raytrain", "bootstrap", *words]
        for name in names or self.hosts.names:
            self.hosts.start(name, command, {"RAY_AUTH_TOKEN": TOKEN, **FAIR, **environment}, watch=watch)

    def until(self, name: str, text: str, timeout_s: float = 60) -> None:
        """Wait until a host has said something."""

        def said() -> bool:
            ended = self.hosts[name].process.poll() is not None
            found = text in self.hosts[name].output
            assert found or not ended, f"{name} did not say {text!r} and ended:\n{self.hosts[name].output}"
            return found

        wait_for(said, timeout_s, f"{name} says {text!r}", lambda: self.outputs, every_s=0.02)

    def wait(self, timeout_s: float = 90) -> dict[str, int]:
        """Exit statuses; whatever a host did, it must have left no process behind."""
        try:
            statuses = self.hosts.wait(patient(timeout_s))
        except ClusterError as error:
            pytest.fail(f"{error}\n" + self.outputs)
        for host in self.hosts.hosts.values():
            if (host.folder / "left").exists():
                assert host.left_behind == [], self.outputs
        return statuses

    @property
    def outputs(self) -> str:
        return "\n".join(f"--- {host.name}\n{host.output[-4000:]}" for host in self.hosts.hosts.values())

    def spread_s(self) -> float:
        """From the first host's end to the last's."""
        ends = [host.ended_at for host in self.hosts.hosts.values() if host.ended_at is not None]
        return max(ends) - min(ends)

    def check(self, statuses: Mapping[str, int], failure: str | None) -> None:
        """The same end everywhere: exit status, failure file, within the time that a teardown may take."""
        assert self.wait() == dict(statuses), self.outputs
        assert self.spread_s() < patient(GONE_WITHIN_S)
        for name in statuses:
            assert self.hosts[name].failure == failure, self.outputs

    def head_log(self, head: str) -> str:
        return self.hosts[head].output

    def check_lost(self, head: str, host: str, cause: str) -> None:
        """The head has said that Ray goes on without a host, once, for whichever reason it heard first."""
        causes = (cause, "Ray no longer hears from it")
        said = [line for line in self.head_log(head).splitlines() if f"lost {host}" in line]
        assert len(said) == 1 and any(f": {known}; Ray goes on" in said[0] for known in causes), said


def nodes_of(host: SimulatedHost) -> list[dict]:
    lines = [line for line in host.output.splitlines() if line.startswith("NODES ")]
    assert len(lines) == 1, host.output  # the program ran once
    return json.loads(lines[0].removeprefix("NODES "))
