"""The commands of the docs as tests run them, and a folder that is for them what the checkout is for a reader."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import write_images

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Every `raytrain ...` line of an indented or fenced block, as (page, text)."""
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            match = re.match(r"    (raytrain [a-z].*)", line)
            if match:
                text = match.group(1).split("  #")[0].strip()
                found.append((page.name, re.sub(r"\[([^\]]*)\]", r"\1", text)))  # what may be left out is tried
    return found


def as_it_stands(line: str) -> list[str]:
    """What stands behind `raytrain` in a line of the docs, which must be there."""
    assert line in {text for _, text in commands()}, f"no page has this line: {line}"
    return shlex.split(line)[1:]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Job files and program as they are, and a few images of their size in the place of the digits."""
    folder = tmp_path / "checkout"
    for name in ("launch", "source_dir"):
        shutil.copytree(ROOT / name, folder / name)
    write_images(folder / "data/digits/train", {"dark": 40, "grey": 40, "light": 40}, 32)
    write_images(folder / "data/digits/validation", {"dark": 10, "grey": 10, "light": 10}, 32, seed=1)
    return folder
