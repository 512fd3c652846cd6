"""From the command to the end of the first step: `raytrain train` against the same job written plainly.

    python benchmarks/startup.py [--rounds 5] [--public] [--smoke]

The job is launch/digits.yaml on this machine as one Ray node. plain_trainer.py is what a reader of Ray's documentation
would write: Ray Data into a TorchTrainer. `--public` adds raytrain through Ray's public API alone. All start from
compiled byte code, and each run starts its own Ray.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from harness import interleave, ratio, spread, write
from workloads import digits

from raytrain import Job
from raytrain.cluster import guardian
from raytrain.cluster.environment import PUBLIC_RAY, child_environment

ROOT = Path(__file__).parents[1]
JOB = ROOT / "launch" / "digits.yaml"


def with_raytrain(folder: Path, public: bool = False) -> dict[str, float]:
    command = [sys.executable, "-m", "raytrain", "train", str(JOB), "--json"]
    changes = [f"data.train.path={folder}", "data.validation=null", "training={steps: 2}"]
    with tempfile.TemporaryDirectory(prefix="raytrain-startup-") as place:
        began = time.time()
        finished = subprocess.run(
            [*command, *(word for change in (*changes, f"run_dir={place}") for word in ("--set", change))],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=child_environment({PUBLIC_RAY: str(int(public))}),
        )
    if finished.returncode:
        raise SystemExit(finished.stderr)
    record = json.loads(finished.stdout)
    started = datetime.fromisoformat(record["started_at"]).timestamp()
    return {name: started + value - began for name, value in record["startup"].items() if value is not None}


def plainly(folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="raytrain-startup-") as place:
        mark = Path(place) / "mark"
        options = json.dumps(Job.from_yaml(JOB).model.options)
        began = time.time()
        command = [sys.executable, str(Path(__file__).with_name("plain_trainer.py")), str(folder), str(mark), options]
        with open(Path(place) / "log", "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
            while process.poll() is None and not (mark.exists() and mark.read_text()):
                time.sleep(0.1)
            guardian.kill(guardian.family([process.pid]), wait_s=10)
            process.wait()
            if not mark.exists():
                raise SystemExit(log.seek(0) or log.read())
        return {"first_step_s": float(mark.read_text()) - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--public", action="store_true", help="also raytrain through Ray's public API alone")
    parser.add_argument("--smoke", action="store_true", help="one round, nothing written")
    arguments = parser.parse_args()
    folder = Path(digits().path)
    variants = {"raytrain": lambda: with_raytrain(folder), "plain": lambda: plainly(folder)}
    if arguments.public:
        variants["raytrain_public"] = lambda: with_raytrain(folder, public=True)
    rows = interleave(variants, 1 if arguments.smoke else arguments.rounds)
    ratios = {
        "raytrain / plain, seconds to the first step": ratio(rows, "first_step_s", "raytrain", "plain"),
        "raytrain, seconds to the first step": spread([row["first_step_s"] for row in rows["raytrain"]]),
        "plain, seconds to the first step": spread([row["first_step_s"] for row in rows["plain"]]),
    }
    if arguments.public:
        ratios["raytrain_public / raytrain, seconds to the first step"] = ratio(
            rows, "first_step_s", "raytrain_public", "raytrain"
        )
    for name, values in ratios.items():
        print(name, {key: round(value, 3) for key, value in values.items()})
    if not arguments.smoke:
        print(write("startup", rows, ratios, job=JOB.name))


if __name__ == "__main__":
    main()
