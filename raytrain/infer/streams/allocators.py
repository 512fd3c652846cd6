"""What a stream's process must start with: threads, the allocator, huge pages.

As `torch.backends.xeon.run_cpu` sets them, but for KMP_AFFINITY: it says which CPUs OpenMP's threads
have before `bind` does, by the CPUs of the process when torch is imported, so that every stream would have the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from raytrain.config.inference import Streams
from raytrain.errors import ConfigError

# Nothing is given back to the system and nothing is mapped by itself, so that the pages of one batch's activations are
# those of the next. Without the first, glibc maps what is larger than 32 MiB anew each time, page by page.
GLIBC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
JEMALLOC = "oversize_threshold:1,background_thread:true,metadata_thp:auto"
NAMES = {"jemalloc": ("jemalloc",), "tcmalloc": ("tcmalloc", "tcmalloc_minimal")}
PACKAGES = {"jemalloc": "libjemalloc2", "tcmalloc": "libtcmalloc-minimal4"}  # Debian's and Ubuntu's
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(
    streams: Streams, threads: int, before: Mapping[str, str], folders: Iterable[Path] | None = None
) -> dict[str, str]:
    """Variables that a stream's process must start with.

    Args:
        threads: of the stream.
        before: the environment without them; what it preloads stays, and what it says of jemalloc.
        folders: where libraries are looked for.

    Raises:
        ConfigError: the allocator is not installed, or there are no huge pages.
    """
    places = library_folders(before) if folders is None else tuple(folders)
    found = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    preloaded = [name for name in before.get("LD_PRELOAD", "").replace(" ", ":").split(":") if name]
    wanted = []
    if streams.allocator in NAMES:
        wanted.append(_library(streams.allocator, places))
    if openmp := find_library("iomp5", places):
        wanted.append(openmp)
        found["KMP_BLOCKTIME"] = "1"  # ms that a thread spins for the next operation
    names = {Path(name).name for name in preloaded}
    if preload := [str(path) for path in wanted if path.name not in names]:
        found["LD_PRELOAD"] = ":".join([*preload, *preloaded])
    if streams.allocator == "glibc":
        found |= GLIBC
    elif streams.allocator == "jemalloc":
        found["MALLOC_CONF"] = before.get("MALLOC_CONF", JEMALLOC)
    if streams.huge_pages:
        found |= _huge_pages(streams, {**before, **found})
    return found


def library_folders(before: Mapping[str, str], root: Path = Path("/")) -> tuple[Path, ...]:
    """Where shared libraries lie: of conda and the virtual environment, the user's, and the system's."""
    own = [Path(before[name]) / "lib" for name in ("CONDA_PREFIX", "VIRTUAL_ENV") if before.get(name)]
    if before.get("HOME"):
        own.append(Path(before["HOME"]) / ".local" / "lib")
    system = [root / name for name in ("usr/local/lib", "usr/local/lib64", "usr/lib", "usr/lib64", "lib", "lib64")]
    for path in sorted((root / "etc" / "ld.so.conf.d").glob("*.conf")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        system += [root / line.strip().lstrip("/") for line in lines if line.strip().startswith("/")]
    return tuple(dict.fromkeys([*own, *system]))


def find_library(name: str, folders: Iterable[Path]) -> Path | None:
    """`lib<name>.so`, or the highest version of it, in the first folder that has one."""
    for folder in folders:
        found = sorted(folder.glob(f"lib{name}.so*"), key=lambda path: (path.suffix == ".so", path.name))
        if found:
            return found[-1]
    return None


def _library(allocator: str, folders: tuple[Path, ...]) -> Path:
    for name in NAMES[allocator]:
        if path := find_library(name, folders):
            return path
    raise ConfigError(
        f"inference.streams.allocator: {allocator} is not installed on this host; Debian and Ubuntu have it as "
        f"{PACKAGES[allocator]} (apt-get install {PACKAGES[allocator]})"
    )


def _huge_pages(streams: Streams, known: Mapping[str, str]) -> dict[str, str]:
    """Torch asks for them for its own tensors, of whichever allocator; glibc and jemalloc for all else. gperftools'
    tcmalloc does not ask: it has them where the system gives them to everybody."""
    if system_huge_pages() == "never":
        raise ConfigError(
            f"inference.streams.huge_pages: this host gives none ({HUGE_PAGES} is `never`); leave it out, or let its "
            f"administrator write `madvise` there"
        )
    found = {"THP_MEM_ALLOC_ENABLE": "1"}
    if streams.allocator == "jemalloc":
        found["MALLOC_CONF"] = f"{known['MALLOC_CONF']},thp:always"
    elif streams.allocator != "tcmalloc":
        tunables = [each for each in known.get("GLIBC_TUNABLES", "").split(":") if each]
        found["GLIBC_TUNABLES"] = ":".join([*tunables, "glibc.malloc.hugetlb=1"])
    return found


def system_huge_pages(path: Path | None = None) -> str:
    """`always`, `madvise` or `never`."""
    try:
        text = (path or HUGE_PAGES).read_text(encoding="utf-8")
    except OSError:
        return "never"  # a kernel without them
    return text.partition("[")[2].partition("]")[0]
