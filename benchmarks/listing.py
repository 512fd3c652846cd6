"""How long a folder of very many images takes to list, against Python's own walk over it.

    python benchmarks/listing.py [--files 1000000] [--classes 1000] [--rounds 3] [--smoke]

Each in a process of its own, from its first import on for raytrain. The files hold one byte: listing reads none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from harness import figures_of, interleave, ratio, spread, write

TIMEOUT_S = 900
SCRIPTS = {
    "raytrain": """
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.sources.open import open_manifest
found = open_manifest(image_folder(sys.argv[1])).num_samples
""",
    "walk": """
import os
found = sum(len(names) for _, _, names in os.walk(sys.argv[1]))
""",
}
AROUND = """
import json, resource, sys, time
began = time.perf_counter()
{script}
seconds = time.perf_counter() - began
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(dict(seconds=seconds, found=found, peak_bytes=peak)))
"""


def make(folder: Path, files: int, classes: int) -> None:
    for label in range(classes):
        (folder / f"{label:05d}").mkdir()
    for number in range(files):
        (folder / f"{number % classes:05d}" / f"{number:08d}.jpg").write_bytes(b"x")


def run(folder: Path, name: str) -> dict[str, float]:
    code = AROUND.format(script=SCRIPTS[name])
    return figures_of(name, [sys.executable, "-c", code, str(folder)], TIMEOUT_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one round of 2,000 files, nothing written")
    asked = parser.parse_args()
    files, classes, rounds = (2_000, 20, 1) if asked.smoke else (asked.files, asked.classes, asked.rounds)
    with tempfile.TemporaryDirectory(prefix="raytrain-listing-") as folder:
        make(Path(folder), files, classes)
        rows = interleave({name: partial(run, Path(folder), name) for name in SCRIPTS}, rounds)
    assert {row["found"] for each in rows.values() for row in each} == {files}
    found = {f"{name}, seconds": spread([row["seconds"] for row in each]) for name, each in rows.items()}
    found["raytrain / walk, seconds"] = ratio(rows, "seconds", "raytrain", "walk")
    for name, values in found.items():
        print(name, {key: float(f"{value:.4g}") for key, value in values.items()})
    if not asked.smoke:
        print(write("listing", rows, found, files=files, classes=classes))


if __name__ == "__main__":
    main()
