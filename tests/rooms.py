"""The rooms of raytrain and the doors between them, read from docs/architecture.md and from the code.

python tests/rooms.py            # today's doors
python tests/rooms.py --write    # ... into docs/architecture.md
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raytrain"
PAGE = ROOT / "docs" / "architecture.md"
DOORS = re.compile(r"(?<=<!-- doors -->\n).*?(?=<!-- /doors -->)", re.DOTALL)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder of the package that a file is in; at the root its own name, `__init__` and `__main__` included."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def floors() -> dict[str, int]:
    """Every room's floor, by the page's table; those of one floor never import each other."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows, f"{PAGE.name} has no table of rooms"
    return {room: int(floor) for floor, room in rows}


def modules() -> dict[str, Path]:
    """Every module by its full name."""
    names = {path: ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)) for path in files()}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports_of(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of raytrain that a file imports: at the top, within a function, or for a type checker alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module.split(".")[0] == PACKAGE.name:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if whole in known else node.module


def imports() -> dict[str, set[str]]:
    """By module, what it imports of raytrain."""
    known = modules()
    return {name: set(imports_of(path, known)) - {name} for name, path in known.items()}


def ring() -> list[str]:
    """Modules that import each other in a ring; none where none do."""
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def doors() -> dict[str, set[str]]:
    """By room, the rooms that its files import."""
    known = modules()
    found: dict[str, set[str]] = {room_of(path): set() for path in known.values()}
    for name, others in imports().items():
        here = room_of(known[name])
        found[here] |= {room_of(known[other]) for other in others} - {here}
    return found


def doors_table() -> str:
    order = sorted(floors(), key=floors().get)
    found = doors()
    lines = ["| room | imports |", "|---|---|"]
    lines += [f"| `{room}` | {', '.join(r for r in order if r in found[room])} |" for room in order if room in found]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/architecture.md")
    if parser.parse_args().write:
        PAGE.write_text(DOORS.sub(lambda _: doors_table(), PAGE.read_text()))
    else:
        print(doors_table(), end="")


if __name__ == "__main__":
    main()
