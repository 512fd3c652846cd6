"""NVIDIA's Multi-Process Service: kernels of several processes run on a GPU at the same time, not in turn.

The GPUs need not be in exclusive mode. One daemon a host, for all its GPUs and all processes of one user.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from raytrain.cluster.environment import child_environment
from raytrain.errors import ClusterError, ConfigError, one_line

PROGRAM = "nvidia-cuda-mps-control"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Mps:
    """The daemon of a host.

    Attributes:
        folder: of its pipe and its log, of this run alone.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What processes must start with to use it."""
        return {
            "CUDA_MPS_PIPE_DIRECTORY": str(self.folder / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(self.folder / "log"),
        }

    def start(self) -> None:
        """Before any process of the run uses a GPU.

        Raises:
            ConfigError: it is not installed.
            ClusterError: it does not start.
        """
        if shutil.which(PROGRAM) is None:
            raise ConfigError(
                f"inference.mps: {PROGRAM} is not on this host's PATH; it comes with NVIDIA's driver (nvidia-utils, or "
                "the driver's `utility` capability in a container); without it set mps to false"
            )
        for path in self.environment.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        self._control(["-d"], None)

    def stop(self) -> None:
        """When the last process that uses it has ended.

        Raises:
            ClusterError: it does not answer.
        """
        self._control([], "quit\n")

    def _control(self, options: list[str], told: str | None) -> None:
        try:
            ended = subprocess.run(
                [PROGRAM, *options],
                input=told,
                env=child_environment(self.environment),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{PROGRAM} has not answered for {TIMEOUT_S:.0f} s; see {self.folder}") from None
        if ended.returncode:
            said = one_line(RuntimeError(ended.stderr or ended.stdout), 300)
            raise ClusterError(f"{PROGRAM} failed: {said or f'exit status {ended.returncode}'}")
