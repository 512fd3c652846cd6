"""Several hosts on one Linux machine: network, mount, UTS, IPC and PID namespaces joined by a bridge of their own.

Each has its own name, address, /etc/hosts, SageMaker folder, /tmp and /dev/shm, an optional CPU quota, and can be
killed as one. They share this machine's cores, memory, file systems and kernel. Needs root, util-linux and pyroute2.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from raytrain.cluster.environment import ML_FOLDER, simulated_environment
from raytrain.errors import ClusterError
from raytrain.simulate.network import INTERFACE, Network
from raytrain.simulate.quota import CGROUPS, cgroup

NETWORK = "10.213.7"  # inside namespaces that are connected to nothing else
SHM_BYTES = 2 << 30
GONE_WITHIN_S = 10.0
INIT_WITHIN_S = 5.0

# Runs as PID 1's first steps in the new namespaces: $1 the host's folder, $2 its name, $3 SageMaker's folder,
# $4 the cgroup to enter or an empty string, $5 whether PID 1 stays to see what the command leaves behind, then the
# working folder and the command.
_ENTER = f"""
set -e
host=$1 name=$2 ml=$3 cgroup=$4 watch=$5 folder=$6; shift 6
[ -z "$cgroup" ] || echo 0 > "$cgroup/cgroup.procs"
mount --make-rprivate /
mount -t proc proc /proc
echo "$name" > /proc/sys/kernel/hostname
mount -t tmpfs -o size={SHM_BYTES} shm /dev/shm
parent=$(dirname "$ml")
mount -t tmpfs over "$host/over"
mkdir "$host/over/above" "$host/over/work"
mount -t overlay overlay -o "lowerdir=$parent,upperdir=$host/over/above,workdir=$host/over/work" "$parent"
mkdir -p "$ml"
mount --bind "$host/ml" "$ml"
mount --bind "$host/hosts" /etc/hosts
mount --bind "$host/resolv.conf" /etc/resolv.conf
for path in $(cat "$host/visible"); do
  mkdir -p "$host/tmp/$path"; mount --rbind "/tmp/$path" "$host/tmp/$path"
done
exec 9> "$host/left"
mount --rbind "$host/tmp" /tmp
cd "$folder"
[ -n "$watch" ] || exec "$@" 9>&-
set +e
"$@" 9>&- &
child=$!
trap 'kill -TERM $child' TERM
trap 'kill -INT $child' INT
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
for entry in /proc/[0-9]*; do
  pid=${{entry#/proc/}}
  [ $pid -eq 1 ] || tr '\\0' ' ' < $entry/cmdline 2>/dev/null | sed "s/^/$pid /;s/$/\\n/"
done >&9
exit $status
"""


def unavailable() -> str | None:
    """Why hosts cannot be simulated here; None when they can."""
    if sys.platform != "linux":
        return "hosts are simulated with Linux namespaces; this is not Linux"
    if os.geteuid() != 0:
        return "simulating hosts needs root"
    missing = [tool for tool in ("unshare", "nsenter", "setpriv", "mount") if shutil.which(tool) is None]
    if missing:
        return f"simulating hosts needs util-linux ({', '.join(missing)} not found)"
    if importlib.util.find_spec("pyroute2") is None:
        return "simulating hosts needs pyroute2 (pip install 'raytrain[twin]')"
    script = (
        "mount -t tmpfs x /mnt && mkdir /mnt/a /mnt/b && "
        "mount -t overlay overlay -o lowerdir=/opt,upperdir=/mnt/a,workdir=/mnt/b /opt"
    )
    tried = subprocess.run(["unshare", "-mnupif", "sh", "-c", script], capture_output=True, text=True)
    return f"this machine does not allow namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class SimulatedHost:
    """One host; its files lie in `folder`.

    Attributes:
        ml: what it sees as SageMaker's folder.
        log: what its command wrote to standard output and standard error, as one.
        cgroup: of its CPU quota, if it has one.
    """

    name: str
    address: str
    folder: Path
    namespace: str
    cgroup: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    ended_at: float | None = None
    killed: bool = False

    @property
    def ml(self) -> Path:
        return self.folder / "ml"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def left_behind(self) -> list[str]:
        """Processes (id and command) that the command left when it ended, of a host that was started to watch."""
        return [line for line in (self.folder / "left").read_text().splitlines() if len(line.split()) > 1]

    def init(self) -> psutil.Process:
        """PID 1 of the host, as this machine sees it.

        Raises:
            ClusterError: it has ended, or not begun in time.
        """
        deadline = time.monotonic() + INIT_WITHIN_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                if children := psutil.Process(self.process.pid).children():
                    return children[0]
            time.sleep(0.01)
        raise ClusterError(f"the simulated host {self.name} is not running")

    def signal(self, number: int) -> None:
        """To PID 1, as a container gets it."""
        self.init().send_signal(number)

    def kill(self) -> None:
        """The host is gone from one moment to the next, with all that ran on it."""
        self.killed = True
        self.init().kill()

    @property
    def failure(self) -> str | None:
        """What SageMaker would show as the reason of a failure."""
        path = self.ml / "output" / "failure"
        return path.read_text(errors="replace") if path.exists() else None

    def configure(self, name: str, content: object) -> None:
        """Write a file of SageMaker's config folder."""
        path = self.ml / "input" / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def know(self, addresses: Mapping[str, str]) -> None:
        """The host's /etc/hosts, from now on."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        with open(self.folder / "hosts", "r+") as file:  # the same file: it is mounted
            file.truncate()
            file.write("\n".join(lines) + "\n")


@dataclass
class SimulatedHosts:
    """A network of simulated hosts; a context manager that leaves nothing behind.

    Args:
        names: of the hosts.
        folder: where their files go.
        cpus: CPU quota of a host; none for those not named.
    """

    names: Sequence[str]
    folder: Path
    cpus: Mapping[str, float] = field(default_factory=dict)
    hosts: dict[str, SimulatedHost] = field(default_factory=dict, init=False)

    def __enter__(self) -> SimulatedHosts:
        reason = unavailable()
        if reason:
            raise ClusterError(reason)
        _remove_leftovers()
        self._prefix = f"raytrain-{os.getpid()}-{id(self) % 10_000}"
        self._network = Network(self._prefix)
        try:
            for number, name in enumerate(self.names, start=1):
                self.hosts[name] = self._prepare(number, name)
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __getitem__(self, name: str) -> SimulatedHost:
        return self.hosts[name]

    def __exit__(self, *_: object) -> None:
        running = [host for host in self.hosts.values() if host.process is not None and host.process.poll() is None]
        for host in running:
            with contextlib.suppress(psutil.NoSuchProcess, ClusterError):
                host.kill()
        for host in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                host.process.wait(GONE_WITHIN_S)
        self._network.close()
        _remove_leftovers(self._prefix)

    def _prepare(self, number: int, name: str) -> SimulatedHost:
        host = SimulatedHost(name, f"{NETWORK}.{number}", self.folder / name, f"{self._prefix}-{number}")
        for part in ("ml", "tmp", "over"):
            (host.folder / part).mkdir(parents=True)
        (host.folder / "tmp").chmod(0o1777)
        for part in ("hosts", "resolv.conf"):
            (host.folder / part).touch()
        host.know({other: f"{NETWORK}.{i}" for i, other in enumerate(self.names, start=1)})
        if name in self.cpus:
            host.cgroup = cgroup(host.namespace, self.cpus[name])
        return host

    def _connect(self) -> None:
        hosts = self.hosts.values()
        self._network.connect([host.namespace for host in hosts], [host.address for host in hosts])

    def place(self, groups: Mapping[str, tuple[str, Sequence[str]]]) -> None:
        """Give every host the files that SageMaker writes for a job of these groups.

        Args:
            groups: name -> (instance type, names of its hosts), in the order of the job's request.
        """
        listed = [
            {"instance_group_name": group, "instance_type": kind, "hosts": list(names)}
            for group, (kind, names) in groups.items()
        ]
        for group in listed:
            for name in group["hosts"]:
                config = {
                    "current_host": name,
                    "current_instance_type": group["instance_type"],
                    "current_group_name": group["instance_group_name"],
                    "hosts": sorted(self.hosts),
                    "instance_groups": listed,
                    "network_interface_name": INTERFACE,
                }
                self.hosts[name].configure("resourceconfig.json", config)
                self.hosts[name].configure("hyperparameters.json", {})
                self.hosts[name].configure("inputdataconfig.json", {})

    def unplug(self, name: str) -> None:
        """The host runs on, and nothing reaches it or leaves it any more."""
        self._network.plug(self._number(name), "down")

    def plug(self, name: str) -> None:
        """After `unplug`."""
        self._network.plug(self._number(name), "up")

    def delay(self, name: str, seconds: float) -> None:
        """From now on all that reaches the host or leaves it comes so much later.

        Raises:
            ClusterError: this machine does not allow it.
        """
        self._network.delay(self._number(name), seconds)

    def _number(self, name: str) -> int:
        return list(self.hosts).index(name) + 1

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        watch: bool = False,
        inherit: bool = True,
    ) -> SimulatedHost:
        """Run a command on a host, as PID 1 of it.

        Args:
            environment: besides what every process of this machine has, or all there is without `inherit`.
            folder: to start in; by default the code folder of the host's SageMaker folder.
            watch: PID 1 is a shell that passes SIGTERM and SIGINT on and notes what the command left behind.
        """
        host = self.hosts[name]
        code = Path(ML_FOLDER) / "code"
        (host.ml / "code").mkdir(exist_ok=True)
        visible = {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]}
        under_tmp = [str(path.relative_to("/tmp")) for path in visible if path.is_relative_to("/tmp")]
        (host.folder / "visible").write_text("\n".join(under_tmp))
        steps = [str(host.folder), name, ML_FOLDER, str(host.cgroup or ""), "yes" if watch else "", str(folder or code)]
        namespaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        with open(host.log, "ab") as log:
            host.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/var/run/netns/{host.namespace}", *namespaces]
                + ["bash", "-c", _ENTER, "enter", *steps, *command],
                env=simulated_environment(environment or {}) if inherit else dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return host

    def look(self, name: str, command: Sequence[str], **environment: str) -> str:
        """What a command says that is run beside the host's own, as from a shell on it."""
        inside = ["nsenter", "--target", str(self.hosts[name].init().pid), "--all", "--"]
        found = subprocess.run(
            [*inside, *command],
            env=simulated_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return found.stdout

    def wait(self, timeout_s: float) -> dict[str, int]:
        """Exit status of every host that was started, once all have ended; of one that was killed, 137.

        Raises:
            ClusterError: some have not ended in time.
        """
        deadline = time.monotonic() + timeout_s
        started = {name: host for name, host in self.hosts.items() if host.process is not None}
        while any(host.ended_at is None for host in started.values()):
            for host in started.values():
                if host.ended_at is None and host.process.poll() is not None:
                    host.ended_at = time.monotonic()
            if time.monotonic() > deadline:
                left = [name for name, host in started.items() if host.ended_at is None]
                raise ClusterError(f"still running after {timeout_s:g} s: {', '.join(left)}")
            time.sleep(0.01)
        # unshare itself fails when its child is killed (util-linux 2.38), so that its own status says nothing then
        return {name: 137 if host.killed else host.process.returncode for name, host in started.items()}


def _remove_leftovers(prefix: str | None = None) -> None:
    """Namespaces and cgroups of ours: those with this prefix, or of processes that are gone."""
    from pyroute2 import netns

    def ours(name: str) -> bool:
        if prefix is not None:
            return name.startswith(f"{prefix}-")
        words = name.split("-")
        return (
            words[0] == "raytrain" and len(words) == 4 and words[1].isdigit() and not psutil.pid_exists(int(words[1]))
        )

    for name in filter(ours, netns.listnetns()):
        netns.remove(name)
    for folder in (*CGROUPS.glob("cpu/raytrain-*"), *CGROUPS.glob("raytrain-*")):
        if ours(folder.name):
            with contextlib.suppress(OSError):
                folder.rmdir()
