"""What SageMaker collects when a job has ended: model.tar.gz, output.tar.gz and checkpoints, of all hosts together."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raytrain.simulate.hosts import SimulatedHost


def collect(
    folder: Path,
    hosts: Sequence[SimulatedHost],
    checkpoints_of: Callable[[SimulatedHost], Path | None],
    status: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Pack what the hosts left; where two left the same path, the first host's counts, of checkpoints the newest.

    Returns:
        Paths: `model` (not of a failed job), `output`, `checkpoints`, `logs`.
    """
    found: dict[str, Any] = {"logs": str(folder / "logs")}
    parts = {"output": [host.ml / "output/data" for host in hosts]}
    if status != "Failed":
        parts["model"] = [host.ml / "model" for host in hosts]
    for name, folders in parts.items():
        files = _union(folders, name, say)
        if files:
            found[name] = str(folder / f"{name}.tar.gz")
            with tarfile.open(found[name], "w:gz") as archive:
                for relative, path in files.items():
                    archive.add(path, relative)
    kept = _newest([path for host in hosts if (path := checkpoints_of(host)) is not None])
    for relative, path in kept.items():
        target = folder / "checkpoints" / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    if kept:
        found["checkpoints"] = str(folder / "checkpoints")
    return found


def keep_logs(folder: Path, hosts: Sequence[SimulatedHost]) -> None:
    """The hosts' disks are gone with the job, the token for Ray's authentication with them; only the logs stay."""
    (folder / "logs").mkdir(exist_ok=True)
    for host in hosts:
        if host.log.exists():
            shutil.move(host.log, folder / "logs" / f"{host.name}.log")
        shutil.rmtree(host.folder, ignore_errors=True)
    shutil.rmtree(folder / "hosts", ignore_errors=True)


def _newest(folders: Sequence[Path]) -> dict[str, Path]:
    """Every host copies what it changes to the same place in S3, so that the last one to write a file wins."""
    files: dict[str, Path] = {}
    for relative, path in _left(folders):
        if relative not in files or path.stat().st_mtime_ns > files[relative].stat().st_mtime_ns:
            files[relative] = path
    return files


def _union(folders: Sequence[Path], what: str, say: Callable[[str], None]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for relative, path in _left(folders):
        if relative in files:
            say(f"{what}: several hosts left {relative}; the first one's counts")
        else:
            files[relative] = path
    return files


def _left(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Every plain file of every folder, as (path within it, where it lies)."""
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            yield path.relative_to(folder).as_posix(), path
