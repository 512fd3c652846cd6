"""The user's own modules, named in a job file or imported by a script: found here, and sent to whoever runs them.

They travel with the work itself. Ray would ship them by a `runtime_env`, for which it starts processes of its own and
leaves those that it has ready.
"""

from __future__ import annotations

import ast
import copyreg
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from raytrain.errors import ConfigError, named, nearest

OFFERED_SOURCES, OFFERED_STAGES = "raytrain.sources", "raytrain.stages"  # groups of entry points
OBJECT_PATH_FORM = "must look like package.module:name"
MOST_BYTES = 16 << 20  # of source that travels; more is a package to install
PACKAGE_FOLDERS = frozenset(["site-packages", "dist-packages"])
INSTALLED_EVERYWHERE = ("raytrain", "__main__", "__mp_main__")


def look_in(*folders: Path) -> None:
    """Let modules of these folders be imported. What is installed comes first, so that a file which happens to be
    called `queue.py` is nobody's."""
    for folder in map(str, (folder.absolute() for folder in folders)):
        if folder not in sys.path:
            sys.path.append(folder)


def import_object(path: str, key: str = "") -> Any:
    """What `package.module:attribute` names; `key` of the job file opens the message.

    Raises:
        ConfigError: no such module or attribute, or an error in the module.
    """
    name, _, attribute = path.partition(":")
    check_importable(path, key)
    start = f"{key}: " if key else ""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise ConfigError(f"{start}cannot import {path!r}: {named(error)}{own_place(error)}") from None
    if not hasattr(module, attribute):
        of = f" ({module.__file__})" if getattr(module, "__file__", None) else ""
        raise ConfigError(f"{start}module {name!r}{of} has no {attribute!r}{nearest(attribute, vars(module))}")
    return getattr(module, attribute)


def offered(group: str) -> dict[str, str]:
    """By name, the `package.module:name` that installed packages have entry points for.

    Raises:
        ConfigError: two packages give one name to two things.
    """
    found: dict[str, str] = {}
    for each in importlib.metadata.entry_points(group=group):
        before = found.setdefault(each.name, each.value)
        if before != each.value:
            raise ConfigError(
                f"{each.name!r} is {before} of one installed package and {each.value} of another; name it so"
            )
    return found


def is_object_path(path: str) -> bool:
    """Whether it has the form `package.module:attribute`."""
    name, _, attribute = path.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in name.split("."))


def own_place(error: BaseException) -> str:
    """` (file:line)` of the user's code that an error passed last; empty where it passed none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def check_importable(path: str, key: str = "") -> None:
    """Whether the module of `package.module:attribute` is there, without importing it.

    Raises:
        ConfigError: saying where it was looked for.
    """
    top, start = top_of(path), f"{key}: " if key else ""
    if not is_object_path(path):
        raise ConfigError(f"{start}{path!r} {OBJECT_PATH_FORM}")
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        raise ConfigError(
            f"{start}cannot import {path!r}: there is no module {top!r}; put {top}.py beside the job file or into the "
            f"folder that you start raytrain in ({Path.cwd()}), or install it"
        )


@dataclass(frozen=True)
class Source:
    """One module's text."""

    file: str
    is_package: bool
    text: bytes


@dataclass(frozen=True)
class OwnCode:
    """What other processes need to import what this one can. Unpickled, it is there: whatever is pickled behind it in
    the same pickle may name its modules.

    Attributes:
        folders: of this host, where they exist there too.
        sources: by module.
    """

    folders: tuple[str, ...] = ()
    sources: dict[str, Source] = field(default_factory=dict, hash=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_arrived, (self.folders, self.sources))


def own_code(names: Iterable[str] = ()) -> OwnCode:
    """Of the modules that this process has imported and of `names` (as a job file has them, `package.module:name`),
    with what they import: those that are not installed."""
    installed = _installed()
    sources = own_sources([*sys.modules, *names, *_imports(_script())])
    folders = [str(Path(p).absolute()) for p in sys.path if Path(p).is_dir() and not _within(p, installed)]
    return OwnCode(tuple(dict.fromkeys(folders)), sources)


def own_sources(names: Iterable[str]) -> dict[str, Source]:
    """Of the modules of `names` (`package.module:name`) and all that they import, those that are not installed; none
    where that is too much."""
    installed = _installed()
    tops = {top_of(name) for name in names} - set(INSTALLED_EVERYWHERE)
    sources: dict[str, Source] = {}
    seen: set[str] = set()
    size = 0
    while tops - seen and size <= MOST_BYTES:
        top = min(tops - seen)
        seen.add(top)
        found = _sources_of(top, installed)
        sources |= found
        size += sum(len(each.text) for each in found.values())
        if size <= MOST_BYTES:
            tops |= {name for each in found.values() for name in _imports(each.text)} - set(INSTALLED_EVERYWHERE)
    if size > MOST_BYTES:
        logging.getLogger(__name__).warning(
            "your modules have more than %d MB of source and do not travel: other hosts need them in the same folders",
            MOST_BYTES >> 20,
        )
        sources = {}
    return sources


def top_of(name: str) -> str:
    """The module or package on the path that `package.module:name` lies in."""
    return name.partition(":")[0].partition(".")[0]


def _script() -> bytes:
    """The program's own text, whose functions may import what has not been imported yet."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return (_text(Path(file)) or b"") if file and is_own(file) else b""


def _text(path: Path) -> bytes | None:
    """None for what cannot be read, such as an editor's lock, a link to nowhere."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def is_own(path: str) -> bool:
    """Whether a file is the user's: not raytrain's, not Python's, and of no installed package."""
    hidden = (*_installed(), str(Path(__file__).parents[1]))
    return not path.startswith("<frozen") and not _within(path, hidden)


def is_own_module(path: str) -> bool:
    """Whether the module of `package.module:attribute` is the user's own, or not here and so no package's that is."""
    spec = _spec_of(top_of(path))
    if spec is None:
        return True
    files = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    return any(is_own(file) for file in files)


def _spec_of(top: str) -> importlib.machinery.ModuleSpec | None:
    """None where there is no such module, or one that was made and not imported."""
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


@cache
def _installed() -> tuple[str, ...]:
    """Folders of what every host has: Python, and installed packages."""
    paths = sysconfig.get_paths()
    own = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    found = [*own, *site.getsitepackages(), site.getusersitepackages()]
    return tuple({str(Path(path).resolve()) for path in found} | {str(Path(path).absolute()) for path in found})


def _within(path: str, folders: Sequence[str]) -> bool:
    """Another environment's packages, which may be on the path as well, are nobody's own either."""
    return not PACKAGE_FOLDERS.isdisjoint(Path(path).parts) or any(
        Path(path).absolute().is_relative_to(folder) for folder in folders
    )


def _sources_of(top: str, installed: Sequence[str]) -> dict[str, Source]:
    """Of a module, or of a package with all its modules; empty for what is installed or no Python source."""
    spec = _spec_of(top)
    if spec is None:
        return {}
    if spec.origin is None:  # a package without __init__.py
        roots = [Path(each) for each in spec.submodule_search_locations or () if not _within(each, installed)]
        return {name: source for root in reversed(roots) for name, source in _package(top, root).items()}
    if not spec.origin.endswith(".py") or _within(spec.origin, installed):
        return {}
    if spec.submodule_search_locations is not None:
        return _package(top, Path(spec.origin).parent)
    text = _text(Path(spec.origin))
    return {} if text is None else {top: Source(spec.origin, False, text)}


def _package(top: str, root: Path) -> dict[str, Source]:
    """Everything below its folder, but for hidden files and environments; a folder without __init__.py is a package
    as well, of no text."""
    found: dict[str, Source] = {}
    for folder, subfolders, files in os.walk(root):
        place = Path(folder)
        subfolders[:] = [n for n in subfolders if n.isidentifier() and not (place / n / "pyvenv.cfg").exists()]
        parts = (top, *place.relative_to(root).parts)
        texts = {Path(n).stem: _text(place / n) for n in files if n.endswith(".py") and Path(n).stem.isidentifier()}
        package = texts.pop("__init__", b"")
        found[".".join(parts)] = Source(str(place / "__init__.py"), True, package or b"")
        found |= {
            ".".join((*parts, stem)): Source(str(place / f"{stem}.py"), False, text)
            for stem, text in texts.items()
            if text is not None
        }
    return found


@cache
def _imports(text: bytes) -> frozenset[str]:
    """First names of the modules that a source imports anywhere."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


def torch_by_name() -> None:
    """Let `torch.classes` and `torch.ops` be pickled by name as other modules are: cloudpickle takes them along with a
    script's function that uses torch and has an attribute called so anywhere, such as `ctx.task.classes`."""
    for name in ("torch.classes", "torch.ops"):
        if name in sys.modules:
            copyreg.pickle(type(sys.modules[name]), _import_of)


def _import_of(module: ModuleType) -> tuple[Any, ...]:
    return importlib.import_module, (module.__name__,)


def _arrived(folders: tuple[str, ...], sources: dict[str, Source]) -> OwnCode:
    """In another process: let its modules be imported from now on."""
    if sources and not any(isinstance(each, Carried) and each.sources == sources for each in sys.meta_path):
        sys.meta_path.insert(0, Carried(sources))
    look_in(*(Path(folder) for folder in folders if Path(folder).is_dir()))
    return OwnCode(folders, sources)


class Carried(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from their text, under the names of the files that they came from."""

    def __init__(self, sources: dict[str, Source]):
        self.sources = sources

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        source = self.sources.get(name)
        if source is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=source.file, is_package=source.is_package)
        spec.has_location = True
        if source.is_package:  # for what does not travel: extensions, where the folder exists here
            spec.submodule_search_locations = [str(Path(source.file).parent)]
        return spec

    def get_source(self, name: str) -> str:
        return importlib.util.decode_source(self.sources[name].text)

    def get_code(self, name: str) -> Any:
        return compile(self.sources[name].text, self.sources[name].file, "exec", dont_inherit=True)

    def is_package(self, name: str) -> bool:
        return self.sources[name].is_package
