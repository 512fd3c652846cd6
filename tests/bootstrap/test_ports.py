"""What listens on the hosts of a job is what SECURITY.md lists, and who has no token gets no answer from it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

from simulated_job import TOKEN, TWO, on_simulated_hosts

pytestmark = on_simulated_hosts

HEAD, OTHER = "algo-1", "algo-2"
LOOP = """
import os, time

def loop(ctx):
    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            print("TRAINS", os.environ["MASTER_PORT"], ".", flush=True)
            time.sleep(3600)
"""
JOB = """
name: listens
run_dir: /tmp/runs
data: {train: {kind: synthetic, num_samples: 4096, shape: [8, 8, 3], num_classes: 3}, stages: [], batch_size: 16}
training: {epochs: 1, loop: "listening:loop"}
"""
LOOK = """
import contextlib, json, psutil
found = []
for each in psutil.net_connections("inet"):
    if each.pid and (each.status == "LISTEN" or (each.status == "NONE" and not each.raddr)):
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker that has just ended
            command = " ".join(psutil.Process(each.pid).cmdline())
            found.append([each.pid, command, each.laddr.ip, each.laddr.port])
print(json.dumps(found))
"""
ASK = """
import json, sys, urllib.error, urllib.request
import grpc

def ask(port, what, token):
    shown = f"Bearer {token}"
    if what == "HTTP":
        request = urllib.request.Request(f"http://{sys.argv[1]}:{port}/get_or_create_runtime_env")
        if token:
            request.add_header("Authorization", shown)
        try:
            return urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code
    with grpc.insecure_channel(f"{sys.argv[1]}:{port}") as channel:
        try:
            metadata = [("authorization", shown)] if token else None
            channel.unary_unary(f"/ray.rpc.{what}")(b"", timeout=20, metadata=metadata)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name

asked = json.loads(sys.argv[2])
print(json.dumps([[ask(port, what, token) for token in json.loads(sys.argv[3])] for port, what in asked]))
"""
REFUSED = {"UNAUTHENTICATED": "UNAUTHENTICATED", 401: 403}  # without a token: and with a wrong one
METHODS = {  # by process: of each of its services of Ray's protocol
    "gcs_server": ["NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVKeys"],
    "raylet": ["NodeManagerService/GetNodeStats", "ObjectManagerService/Push"],
    **dict.fromkeys(("rank", "worker", "driver"), ["CoreWorkerService/NumPendingTasks"]),
}


def listed() -> dict[str, Counter]:
    """By process, the ports and interfaces of SECURITY.md's table."""
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    table = text.partition("<!-- ports -->")[2].partition("<!-- /ports -->")[0]
    found: dict[str, Counter] = {}
    for name, port, where in re.findall(r"^\| `([^`]+)`[^|]* \| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE):
        found.setdefault(name, Counter())[port, where] += 1
    return found


def name_of(command: str) -> str:
    """Of a process, as the table has it."""
    for word, name in {
        "ray::RayTrainWorker": "rank",
        "raytrain bootstrap": "bootstrap",
        "raytrain train": "driver",
    }.items():
        if word in command:
            return name
    if command.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent")):
        return command.split()[0].removeprefix("ray::")
    if command.startswith("ray::"):
        return "worker"
    return next((name for name in ("gcs_server", "raylet", "dashboard.py") if f"/{name} " in command), command)


def test_what_listens_on_a_host_is_listed_and_asks_for_the_token(job):
    started = job(TWO)
    started.write("listening.py", LOOP)
    started.write("job.yaml", JOB)
    started.start("--", sys.executable, "-m", "raytrain", "train", "job.yaml")
    started.until(HEAD, " .\n", 90)
    store = int(re.search(r"TRAINS (\d+) ", started.hosts[HEAD].output)[1])
    own, found, asked = {"127.0.0.1": "loopback", "::": "all", "0.0.0.0": "all"}, {}, []
    for host in (HEAD, OTHER):
        addresses = {**own, started.hosts[host].address: "its address"}
        for pid, command, ip, port in json.loads(started.hosts.look(host, [sys.executable, "-c", LOOK])):
            name, where = name_of(command), addresses[ip]
            known = str(port) if (str(port), where) in listed().get(name, ()) else "any"
            found.setdefault((host, name, pid), Counter())[known, where] += 1
            if host == HEAD and name in METHODS and where == "all" and port != store:
                asked += [(port, method) for method in METHODS[name]]
            elif host == HEAD and name in ("DashboardAgent", "RuntimeEnvAgent") and where == "its address":
                asked.append((port, "HTTP"))
    for (host, name, _), where in found.items():
        assert where == listed().get(name), f"{name} on {host} listens at {dict(where)}"
    assert {name for host, name, _ in found if host == HEAD} == {*listed()}
    words = [
        sys.executable,
        "-c",
        ASK,
        started.hosts[HEAD].address,
        json.dumps(asked),
        json.dumps(["", "f" * 64, TOKEN]),
    ]
    said = json.loads(started.hosts.look(OTHER, words))
    started.hosts[HEAD].kill()
    assert started.wait()[OTHER] == 1
    let_in = set()
    for (port, what), (without, wrong, right) in zip(asked, said, strict=True):
        if not without == wrong == right == "UNIMPLEMENTED":  # another of its ports has this service
            assert REFUSED.get(without) == wrong and right in ("OK", 404, 405), (port, what, without, wrong, right)
            let_in.add(port)
    assert let_in == {port for port, _ in asked} and len(let_in) >= 8
