"""Programs in the manner of AWS's launcher: Ray is used, `ray.init` is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raytrain.bootstrap.program import CONNECTED

TASKS = """
import sys, beside, ray
@ray.remote
def square(x): return beside.square(x)
print(sys.argv[1:], __name__, ray.get([square.remote(x) for x in range(4)]))
ray.init(); ray.init(address="auto")
ray.shutdown()
ray.init()
print(ray.get(square.remote(5)))
"""
DATA = """
import ray
print(ray.data.range(10).map(lambda row: {"id": 2 * row["id"]}).sum("id"))
"""
TUNE = """
from ray import tune
found = tune.Tuner(lambda config: {"loss": config["x"] ** 2}, param_space={"x": tune.grid_search([3, 1])}).fit()
print("best", found.get_best_result("loss", "min").config["x"])
"""
TORCH = """
import ray.train, torch
from ray.train.torch import TorchTrainer
def loop():
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    assert total.item() == 2
two = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5})
TorchTrainer(loop, scaling_config=two).fit()
print("two ranks")
"""
FAILS = "def f(): raise ValueError('mine')\nf()\n"
PROGRAMS = {"tasks": TASKS, "data": DATA, "tune": TUNE, "trainer": TORCH, "fails": FAILS, "leaves": "exit(7)\n"}
SAYS = {"tasks": "['a', '--b'] __main__ [0, 1, 4, 9]\n25\n", "data": "90", "tune": "best 1", "trainer": "two ranks"}
ALL = f"""
import subprocess, sys
for name in {list(PROGRAMS)}:
    done = subprocess.run([sys.executable, "-m", "{CONNECTED}", f"own/{{name}}.py", "a", "--b"], capture_output=True,
                          text=True)
    open(f"{{name}}.out", "w").write(done.stdout)
    open(f"{{name}}.err", "w").write(done.stderr)
    print(name, done.returncode)
"""


@pytest.mark.ray
def test_programs_of_its_four_kinds(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "beside.py").write_text("def square(x): return x * x\n")
    for name, text in PROGRAMS.items():
        (tmp_path / "own" / f"{name}.py").write_text(text)
    (tmp_path / "all.py").write_text(ALL)
    words = [sys.executable, "-m", "raytrain", "bootstrap", "--connect", "--head-cpus", "4", "--", "all.py"]
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=home, capture_output=True, text=True)
    errors = {name: (tmp_path / f"{name}.err").read_text() for name in PROGRAMS}
    assert done.returncode == 0, done.stderr
    for name in PROGRAMS:
        status = {"fails": 1, "leaves": 7}.get(name, 0)
        assert f"{name} {status}\n" in done.stdout, errors[name]
        assert SAYS.get(name, "") in (tmp_path / f"{name}.out").read_text(), errors[name]
    assert "ValueError: mine" in errors["fails"]
    assert "connected.py" not in errors["fails"]
    assert "runpy" not in errors["fails"]
