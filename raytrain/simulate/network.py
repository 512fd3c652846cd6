"""The network between simulated hosts, as the process sees it that made them; `switch` does the work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from raytrain.errors import ClusterError

INTERFACE = "eth0"


class Network:
    """A bridge, and a cable from it to each host. Hosts are numbered from 1.

    Args:
        prefix: of the names of its namespaces.
    """

    def __init__(self, prefix: str):
        self._switch = f"{prefix}-switch"
        self._carriers: list[subprocess.Popen[str]] = []

    def connect(self, namespaces: Sequence[str], addresses: Sequence[str]) -> None:
        """
        Raises:
            ClusterError: this machine does not allow it.
        """
        self._do(do="connect", interface=INTERFACE, namespaces=list(namespaces), addresses=list(addresses))

    def plug(self, number: int, state: str) -> None:
        """Pull a host's cable (`down`), or put it in again (`up`)."""
        self._do(do="plug", port=f"port{number}", state=state)

    def delay(self, number: int, seconds: float) -> None:
        """
        Raises:
            ClusterError: this machine does not allow it.
        """
        carrier = self._start(do="delay", port=f"port{number}", number=number, seconds=seconds)
        self._carriers.append(carrier)
        if not carrier.stdout.readline():
            raise _not_allowed(carrier.stderr.read())

    def close(self) -> None:
        """What carries frames is ended; the namespaces are left."""
        for carrier in self._carriers:
            carrier.kill()
            carrier.communicate()

    def _do(self, **wanted: object) -> None:
        done = self._start(**wanted)
        _, errors = done.communicate()
        if done.returncode:
            raise _not_allowed(errors)

    def _start(self, **wanted: object) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "raytrain.simulate.switch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        started.stdin.write(json.dumps({"switch": self._switch, **wanted}))
        started.stdin.close()
        started.stdin = None  # `communicate` would write there
        return started


def _not_allowed(errors: str) -> ClusterError:
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return ClusterError(f"this machine does not allow a simulated network: {last}")
