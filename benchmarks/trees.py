"""The same measurements in two versions of raytrain, in turns: what a change has cost, or saved.

    python benchmarks/trees.py 47acd8f [HEAD] [--figures ingest startup bootstrap] [--rounds 5] [--smoke]

Each version is unpacked into a folder of its own and measured with its own benchmarks, all with the packages of this
environment. Ratios are the second over the first, so that 1 says that nothing has changed: samples a second for ingest
(more is better), seconds for startup and bootstrap.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness import figures_of, interleave, ratio, write

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 900
SCRIPTS = {  # each prints the figures of one run as JSON, in a version's benchmarks folder
    "ingest": """
import ingest
print(json.dumps(ingest.run("raytrain", {workload!r}, {options!r})))
""",
    "startup": """
import startup, workloads
from pathlib import Path
print(json.dumps(startup.with_raytrain(Path(workloads.digits().path))))
""",
    "bootstrap": """
import bootstrap
command = [sys.executable, "-m", "raytrain", "bootstrap", "--json", "--", "program.py"]
print(json.dumps(bootstrap.measure(command, dict(RAY_AUTH_TOKEN=bootstrap.TOKEN, PYTHONPATH={tree!r}))))
""",
}
WORKLOADS = ("own_blur", "digits")
COMPARED = {"ingest": ("samples_per_s",), "startup": ("first_step_s",), "bootstrap": ("start_s", "all_gone_s")}


def unpack(commit: str, folder: Path) -> Path:
    """The version's files, below `folder`."""
    tree = folder / commit
    tree.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return tree


def measure(tree: Path, script: str) -> dict[str, float]:
    """One run of `script` with that version's package and benchmarks."""
    code = f"import json, sys; sys.path.insert(0, {str(tree / 'benchmarks')!r})\n{script}"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return figures_of(tree.name, [sys.executable, "-c", code], TIMEOUT_S, env=environment, cwd=tree)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--figures", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one short round of ingest, nothing written")
    asked = parser.parse_args()
    figures = ["ingest"] if asked.smoke else asked.figures
    cases = [(figure, workload) for figure in figures for workload in (WORKLOADS if figure == "ingest" else (None,))]
    options = {"epochs": 1, "batch_size": 2, "num_samples": 20} if asked.smoke else {}
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    ratios: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="raytrain-trees-") as folder:
        hashes = {
            name: subprocess.run(
                ["git", "rev-parse", "--short", commit], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout.strip()
            for name, commit in {"before": asked.before, "after": asked.after}.items()
        }
        trees = {commit: unpack(commit, Path(folder)) for commit in set(hashes.values())}
        for figure, workload in cases[: 1 if asked.smoke else None]:
            case = figure if workload is None else f"{figure} {workload}"
            variants: dict[str, Callable[[], dict[str, float]]] = {}
            for name, commit in hashes.items():
                tree = trees[commit]
                script = SCRIPTS[figure].format(workload=workload, options=options, tree=str(tree))
                variants[name] = partial(measure, tree, script)
            rows[case] = interleave(variants, 1 if asked.smoke else asked.rounds)
            for compared in COMPARED[figure]:
                found = ratio(rows[case], compared, "after", "before")
                ratios[f"{case}, {compared}"] = found
                print(f"{case}, {compared}, after / before", {key: round(value, 3) for key, value in found.items()})
    if not asked.smoke:
        print(write("trees", rows, ratios, **hashes))


if __name__ == "__main__":
    main()
