"""Listing and reading files, local or remote."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import Paths
from raytrain.config.file import section_of
from raytrain.config.section import Section
from raytrain.errors import DataError, looked_for, one_line, without_credentials

Described = TypeVar("Described", bound=Section)
Thing = TypeVar("Thing")
TELL_EVERY_S = 1.0
Place = str | os.PathLike[str]
Places = Place | Sequence[Place]

WILD = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
MOST_PATHS, MOST_BRACES = 1_000_000, 100
URL = "^[A-Za-z][A-Za-z0-9+.-]+:/|://"
LEADS_AWAY = rf"{URL}|^/|(^|/)\.\.(/|$)"  # of RE2, which Arrow has: from the folder that paths start from


def path_of(path: Any) -> Any:
    """As a description has it: text, or several."""
    if isinstance(path, list | tuple):
        return tuple(path_of(each) for each in path)
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def described(source: type[Described], kind: str, **options: Any) -> Described:
    """Raises ConfigError as of a job file."""
    return section_of(source, {"kind": kind, **options}, kind)


@dataclass(frozen=True)
class Listing:
    """Files of one file system.

    Attributes:
        root: what `names` are below; empty where they are whole paths.
        names: sorted, in the order of the paths that were given.
        told: what was given, for messages.
    """

    filesystem: pyarrow.fs.FileSystem
    root: str
    names: list[str]
    told: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if self.root else name

    def ending(self, *suffixes: str) -> list[str]:
        """Whole paths of the files whose names end so.

        Raises:
            DataError: one is no UTF-8, which pyarrow cannot open.
        """
        found = [self.path(name) for name in self.names if name.lower().endswith(suffixes)]
        for path in found:
            if not path.isascii() and path != path.encode(errors="replace").decode():
                raise DataError(f"cannot read {ascii(path)}: its name is no UTF-8; rename it")
        return found


def filesystem_of(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    try:
        if "://" in path:
            filesystem, root = pyarrow.fs.FileSystem.from_uri(path)
            return filesystem, root
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot open {path}: {one_line(error)}") from None


def is_local(path: str) -> bool:
    """Of this machine, so that what it names may be anywhere there."""
    return isinstance(filesystem_of(path)[0], pyarrow.fs.LocalFileSystem)


def list_files(paths: Paths) -> Listing:
    """Every file that the paths name or that lies below them, hidden ones left out.

    Args:
        paths: a file or folder, with `*`, `?`, `[…]` and `**` as a shell has them, with `{a,b}` and `{000..012}`, where
            there is none of just that name; or several of such.

    Raises:
        DataError: one of them is not there, or cannot be listed.
    """
    given = (paths,) if isinstance(paths, str) else paths
    each = [expanded for path in given for expanded in ([path] if os.path.exists(path) else expand_braces(path))]
    found = [_matching(path) if WILD.search(path) and not os.path.exists(path) else below(path) for path in each]
    if len(found) == 1:
        return found[0]
    kinds = {type(listing.filesystem) for listing in found}
    if len(kinds) > 1:
        raise DataError(f"{', '.join(given)} lie in different file systems; a source has one")
    names = [listing.path(name) for listing in found for name in listing.names]
    return Listing(found[0].filesystem, "", list(dict.fromkeys(names)), ", ".join(given))


def check_paths(paths: Any, told: str, *, foreign: bool) -> None:
    """That the paths in a list or an index are what they may be. No path there is ever taken for a URL.

    Args:
        paths: text, an Arrow array or a list of Python's.
        told: what they are in.
        foreign: it comes from elsewhere, and may name files below its folder alone; a list of this machine is the
            user's, and may name any file.

    Raises:
        DataError: which one is not.
    """
    import pyarrow.compute as pc  # takes a while, for every start

    paths = paths if isinstance(paths, pa.ChunkedArray | pa.Array) else pa.array(paths, pa.string())
    row = pc.index(pc.match_substring_regex(paths, LEADS_AWAY if foreign else URL), True).as_py()
    if row >= 0:
        found = without_credentials(str(paths[row].as_py()))[:200]
        rule = "a list has paths and no URLs, and `root`, which may be s3://…, is where they start"
        if foreign:
            rule = "what comes from elsewhere may only name files below its folder: no URL, no / at the start and no .."
        raise DataError(f"{told}: row {row + 1} names {found!r}; {rule}")


def expand_braces(path: str) -> list[str]:
    """As a shell does: `{a,b}`, and ranges of numbers such as `{000..012}`, with as many digits.

    Raises:
        DataError: they stand for more than MOST_PATHS.
    """
    found = [*islice(_expanded(path), MOST_PATHS + 1)] if path.count("{") <= MOST_BRACES else []
    if not 0 < len(found) <= MOST_PATHS:
        raise DataError(f"{path}: its braces stand for more than {MOST_PATHS:,} paths")
    return found


def _expanded(path: str) -> Iterator[str]:
    match = BRACES.search(path)
    if match is None:
        yield path
        return
    inner = match.group(1)
    numbers = RANGE.fullmatch(inner)
    if numbers:
        first, last = numbers.groups()
        step = 1 if int(first) <= int(last) else -1
        parts: Iterable[str] = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + step, step))
    else:
        parts = inner.split(",")
    for part in parts:
        yield from _expanded(f"{path[: match.start()]}{part}{path[match.end() :]}")


def _matching(path: str) -> Listing:
    fixed = path[: WILD.search(path).start()]  # type: ignore[union-attr]
    start = fixed.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    listing = below(start)
    pattern = path[len(start) :].lstrip("/") if start != "." or path.startswith("./") else path
    names = [name for name in listing.names if _matches(name, pattern)]
    if not names:
        raise DataError(f"nothing matches {path}{looked_for(start)}; check the path in the job file (data.*.path)")
    return Listing(listing.filesystem, listing.root, names, path)


def _matches(name: str, pattern: str) -> bool:
    """`*` stays within a folder, `**` does not; what lies below a folder that matches does too."""
    return _parts_match(name.split("/"), pattern.split("/"))


def _parts_match(parts: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return True
    if wanted[0] == "**":
        return any(_parts_match(parts[skip:], wanted[1:]) for skip in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _parts_match(parts[1:], wanted[1:])


_TELL: ContextVar[Callable[[str], None] | None] = ContextVar("listing", default=None)


@contextlib.contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Have `tell` called with how far a listing has come, once a second of those that take longer than that."""
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


def counted(things: Iterable[Thing], doing: str, what: str) -> Iterator[Thing]:
    """The same things, and a line a second on how many there have been: `listing s3://b/train: 120,000 files`."""
    tell, told_at = _TELL.get(), time.monotonic()
    for number, thing in enumerate(things, start=1):
        if tell is not None and number % 256 == 0 and time.monotonic() - told_at > TELL_EVERY_S:
            told_at = time.monotonic()
            tell(f"{without_credentials(doing)}: {number:,} {what} so far")
        yield thing


def below(path: str) -> Listing:
    """A file, or every file below a folder; `*` and `{` are letters like any other.

    Raises:
        DataError: it is not there, or cannot be listed.
    """
    filesystem, root = filesystem_of(path)
    try:
        info = filesystem.get_file_info(root)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise DataError(f"{path} does not exist{looked_for(path)}; check the path in the job file (data.*.path)")
        if info.is_file:
            return Listing(filesystem, str(PurePosixPath(root).parent), [PurePosixPath(root).name], path)
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):  # pyarrow leaves out links to nothing
            paths = list(counted(_walked(root), f"listing {path}", "files"))
        else:
            found = filesystem.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
            paths = [entry.path for entry in found if entry.type != pyarrow.fs.FileType.Directory]
    except (OSError, ValueError) as error:  # the latter of characters that no path has
        raise DataError(f"cannot list {path}: {one_line(error)}") from None
    names = (path[len(root) :].lstrip("/") for path in paths)
    return Listing(filesystem, root, sorted(n for n in names if "." not in _firsts(n)), path)


def _walked(root: str) -> Iterator[str]:
    """Files below a folder of this machine. Links are followed wherever they lead, as a shell does: it is the user's.

    Raises:
        DataError: a link leads back to a folder that it is in.
    """
    # by folder: what it and those above it really are
    ways: dict[str, tuple[str, ...]] = {root: (os.path.realpath(root),)}
    for folder, folders, files in os.walk(root, onerror=_raised, followlinks=True):
        way = ways.pop(folder)
        for name in folders:
            path = os.path.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(way[-1], name)
            if real in way:
                raise DataError(f"cannot list {root}: the link {path} leads back to {real}; remove it")
            ways[path] = (*way, real)
        yield from (os.path.join(folder, name) for name in files)


def _raised(error: OSError) -> None:
    """`os.walk` would pass over a folder that it cannot list."""
    raise error


def _firsts(name: str) -> set[str]:
    """The first letter of each part of a path."""
    return {part[:1] for part in name.split("/")}
