"""What a person looks at: the lingering cluster, the dashboard, Prometheus."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from patience import patient
from simulated_job import ONE, TOKEN, TWO, on_simulated_hosts

pytestmark = on_simulated_hosts

PROMETHEUS = Path(sys.prefix) / "bin" / "prometheus"


def test_linger_keeps_the_cluster_for_a_look(job):
    started = job(ONE)
    started.write("program.py", "raise SystemExit(3)")
    started.start("--linger", "600", "--", "program.py")
    started.until("algo-1", "the cluster stays for 600 s (--linger)")
    look = "import ray; ray.init(address='auto', logging_level='error'); print(len(ray.nodes()), 'NODE')"
    token = next(started.hosts["algo-1"].folder.glob("tmp/raytrain-*/token"))
    assert token.read_text() == TOKEN and token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    seen = started.hosts.look("algo-1", [sys.executable, "-c", look], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert "1 NODE" in seen
    started.hosts["algo-1"].signal(signal.SIGTERM)
    assert started.wait() == {"algo-1": 3}
    assert not list(started.hosts["algo-1"].folder.glob("tmp/raytrain-*"))


@pytest.mark.parametrize("asked", [[], ["--dashboard-host", "0.0.0.0"]], ids=["loopback", "everywhere"])
def test_the_dashboard_listens_on_loopback_unless_asked_and_the_way_there_is_said(job, asked):
    started = job(ONE)
    started.write("program.py", "print('READY'); import time; time.sleep(600)")
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/vit-1"
    started.start("--dashboard", *asked, "--", "program.py", TRAINING_JOB_NAME="vit-1", TRAINING_JOB_ARN=arn)
    started.until("algo-1", "READY")
    wanted = (
        "aws ssm start-session --target sagemaker-training-job:vit-1_algo-1 --region eu-west-1 "
        "--document-name AWS-StartPortForwardingSession "
        """--parameters '{"portNumber":["8265"],"localPortNumber":["8265"]}'"""
    )
    assert wanted in started.head_log("algo-1")
    ask = (
        "import time, urllib.request\n"
        "def answer(host):\n"
        "    try: return urllib.request.urlopen(f'http://{host}:8265/', timeout=5).read().decode()\n"
        "    except OSError as error: return str(error)\n"
        "while 'refused' in answer('127.0.0.1'): time.sleep(0.2)\n"
        "print(answer('127.0.0.1'), answer('algo-1'))\n"
    )
    seen = started.hosts.look("algo-1", [sys.executable, "-c", ask])
    assert "<title>Ray Dashboard</title>" in seen
    assert ("Connection refused" in seen) == (not asked)
    started.hosts["algo-1"].signal(signal.SIGTERM)
    assert started.wait() == {"algo-1": 143}


RECEIVER = """
import base64, http.server, json, os, sys, threading, time, urllib.request

written = threading.Event()

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print("WRITTEN", len(body), self.headers["Content-Encoding"], self.headers["Authorization"], flush=True)
        self.send_response(int(sys.argv[1]))
        self.end_headers()
        written.set()

    def log_message(self, *_):
        pass

threading.Thread(target=http.server.HTTPServer(("127.0.0.1", 9999), Receiver).serve_forever, daemon=True).start()
deadline = time.time() + float(sys.argv[2])
while time.time() < deadline:
    try:
        answer = json.load(urllib.request.urlopen("http://127.0.0.1:9090/api/v1/targets"))
        targets = answer["data"]["activeTargets"]
        if targets and all(t["health"] == "up" for t in targets):
            break
    except OSError:
        pass
    time.sleep(0.5)
print("TARGETS", json.dumps(sorted([t["labels"]["host"], t["labels"]["group"], t["health"]] for t in targets)))
query = urllib.request.urlopen("http://127.0.0.1:9090/api/v1/query?query=ray_node_cpu_count")
print("SERIES", len(json.load(query)["data"]["result"]), flush=True)
written.wait(float(sys.argv[2]))
time.sleep(2)  # Prometheus says what it makes of the answer
"""


@pytest.mark.skipif(not PROMETHEUS.exists() and not shutil.which("prometheus"), reason="no prometheus on this machine")
@pytest.mark.parametrize("answer", ["204", "403"])
def test_a_real_prometheus_collects_from_every_node_and_sends_it_on(job, answer):
    started = job(TWO)
    started.write("program.py", RECEIVER)
    words = ["--remote-write", "http://127.0.0.1:9999/api/v1/write", "--remote-write-user", "me"]
    path = f"{PROMETHEUS.parent}:{os.environ['PATH']}"
    secret = {"PATH": path, "RAYTRAIN_REMOTE_WRITE_PASSWORD": "secretsecretsecret"}
    started.start(*words, "--", "program.py", answer, str(patient(40)), **secret)
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    seen = started.head_log("algo-1")
    assert 'TARGETS [["algo-1", "gpu", "up"], ["algo-2", "cpu", "up"]]' in seen
    assert "SERIES 2" in seen
    written = [line for line in seen.splitlines() if line.startswith("WRITTEN ")]
    assert written and all(line.endswith(" snappy Basic bWU6c2VjcmV0c2VjcmV0c2VjcmV0") for line in written), seen
    assert ("raytrain [algo-1" in seen and "server returned HTTP status 403" in seen) == (answer == "403")
    assert "secretsecretsecret" not in seen
