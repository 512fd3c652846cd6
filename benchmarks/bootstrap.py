"""From the start of a job to its program's first line, and from the program's end to the last host gone.

Three simulated hosts of this machine (a GPU group of one, a CPU group of two), interleaved:

- bootstrap: `raytrain bootstrap -- program.py`, with token authentication;
- dashboard: the same with --dashboard;
- ray_start: what a plain script does, `ray start` on every host (with its dashboard, without authentication), a wait
  for all nodes, the program, `ray stop` on the head.

Needs root and Linux. Short form: --smoke.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import interleave, ratio, spread, write

from raytrain.simulate.hosts import SimulatedHosts, unavailable

GROUPS = {"cpu": ("ml.c5.4xlarge", ["algo-1", "algo-3"]), "gpu": ("ml.g5.xlarge", ["algo-2"])}
HEAD = "algo-2"
HOSTS = ("algo-1", "algo-2", "algo-3")
PROGRAM = "import time\nprint('FIRST', time.monotonic(), flush=True)\nprint('LAST', time.monotonic(), flush=True)\n"
TOKEN = "0123456789abcdef" * 4


def plain_script() -> None:
    """Runs on every host for `ray_start`."""
    ray = [str(Path(sys.executable).with_name("ray")), "start"]
    if os.uname().nodename != HEAD:
        while subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/{HEAD}/6379"], stderr=subprocess.DEVNULL).returncode:
            time.sleep(0.5)
        raise SystemExit(subprocess.run([*ray, f"--address={HEAD}:6379", "--block"]).returncode)
    subprocess.run([*ray, "--head", "--port=6379", "--dashboard-host=127.0.0.1"], check=True)
    import ray as cluster

    cluster.init(address=f"{HEAD}:6379", logging_level="error")
    while sum(node["Alive"] for node in cluster.nodes()) < len(HOSTS):
        time.sleep(0.5)
    cluster.shutdown()
    subprocess.run([sys.executable, "-u", "program.py"], check=True)
    subprocess.run([ray[0], "stop"])


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """One job, from nothing to nothing. Seconds."""
    with tempfile.TemporaryDirectory() as folder, SimulatedHosts(HOSTS, Path(folder)) as hosts:
        hosts.place(GROUPS)
        for host in hosts.hosts.values():
            (host.ml / "code").mkdir()
            (host.ml / "code" / "program.py").write_text(PROGRAM)
        began = time.monotonic()
        for name in HOSTS:
            hosts.start(name, command, environment)
        statuses = hosts.wait(300)
        lines = [line.split() for line in hosts[HEAD].output.splitlines()]
        stamps = {line[0]: float(line[1]) for line in lines if line and line[0] in ("FIRST", "LAST")}
        assert set(statuses.values()) <= {0, 1}, hosts[HEAD].output
        ends = [host.ended_at for host in hosts.hosts.values()]
        found = {
            "start_s": stamps["FIRST"] - began,
            "head_gone_s": hosts[HEAD].ended_at - stamps["LAST"],
            "all_gone_s": max(ends) - stamps["LAST"],
        }
        return {**found, **stages(hosts[HEAD].output)}


def stages(output: str) -> dict[str, float]:
    """Where the start went, from the bootstrap's own lines: seconds since its own start."""
    found = {}
    for line in output.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            for text, name in (
                ("Ray runs here", "head_ray_s"),
                ("3 of 3 hosts", "all_in_s"),
                ("runs (pid", "spawned_s"),
            ):
                if text in said["message"]:
                    found[name] = said["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="the bootstrap alone, once, nothing written")
    parser.add_argument("--plain-script", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain_script:
        plain_script()
        return
    reason = unavailable()
    if reason:
        raise SystemExit(reason)
    ours = [sys.executable, "-m", "raytrain", "bootstrap", "--json"]
    token, none = {"RAY_AUTH_TOKEN": TOKEN}, {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variants = {"bootstrap": lambda: measure([*ours, "--", "program.py"], token)}
    if not arguments.smoke:
        variants["dashboard"] = lambda: measure([*ours, "--dashboard", "--", "program.py"], token)
        script = [sys.executable, str(Path(__file__).resolve()), "--plain-script"]
        variants["ray_start"] = lambda: measure(script, none)
    rows = interleave(variants, 1 if arguments.smoke else arguments.rounds)
    figures = {
        f"{name}, {figure}": spread([row[figure] for row in found])
        for name, found in rows.items()
        for figure in found[0]
    }
    for name, values in figures.items():
        print(name, {key: round(value, 2) for key, value in values.items()})
    if not arguments.smoke:
        ratios = {
            f"{name} / ray_start, {figure}": ratio(rows, figure, name, "ray_start")
            for name in ("bootstrap", "dashboard")
            for figure in ("start_s", "all_gone_s")
        }
        for name, values in ratios.items():
            print(name, {key: round(value, 3) for key, value in values.items()})
        print(write("bootstrap", rows, {**figures, **ratios}, hosts=len(HOSTS), rounds=arguments.rounds))


if __name__ == "__main__":
    main()
