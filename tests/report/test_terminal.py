"""What a terminal shows of the ranks: each line that they print once, and an error in the user's code once."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import run_cli
from patience import patient

pytestmark = pytest.mark.ray

LOOP = """
import sys
from raytrain import Job, Pipeline, fit
from raytrain.data import decode, image_folder

def weight(name):
    try:
        return {"dark": 1.0}[name]
    except KeyError as error:
        raise ValueError(f"no weight for {name}") from error

def loop(ctx):
    print(f"said by rank {ctx.rank}")
    print(f"complained by rank {ctx.rank}", file=sys.stderr)
    weight("grey")

if __name__ == "__main__":
    fit(loop, Pipeline(image_folder(sys.argv[1]), [decode()], batch_size=8),
        Job.from_dict({"name": "bug", "training": {"epochs": 1}}), nodes=sys.argv[2])
"""
ON_THE_RANK = """on the rank:
  File "{script}", line 8, in weight
    return {{"dark": 1.0}}[name]
           ~~~~~~~~~~~~~^^^^^^
KeyError: 'grey'

The above exception was the direct cause of the following exception:

  File "{script}", line 15, in loop
    weight("grey")
  File "{script}", line 10, in weight
    raise ValueError(f"no weight for {{name}}") from error
ValueError: no weight for grey
"""


@pytest.mark.parametrize(("nodes", "ranks"), [("train=1x1", [0]), ("gpu=1x1x2", [0, 1])])
def test_a_script_shows_each_line_of_a_rank_once_and_its_error_once(images, tmp_path, nodes, ranks):
    script = tmp_path / "bug.py"
    script.write_text(LOOP)
    found = subprocess.run(
        [sys.executable, str(script), str(images / "train"), nodes],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(120),
    )
    assert found.returncode == 1
    everything = found.stdout + found.stderr
    for rank in ranks:
        assert everything.count(f"said by rank {rank}") == found.stdout.count(f"said by rank {rank}") == 1
        assert everything.count(f"complained by rank {rank}") == found.stderr.count(f"complained by rank {rank}") == 1
    assert "Traceback" not in everything
    assert found.stderr.endswith(
        f"raytrain: the training loop failed in {script}:10: ValueError: no weight for grey\n"
        + ON_THE_RANK.format(script=script)
    )
    assert everything.count(str(script)) == 4, "once in the message, once a frame, and how fit was called nowhere"


MODEL = """
import torch

class Narrow(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(1, num_classes)

    def forward(self, image):
        return self.layer(image.flatten(1))
"""


def test_the_command_line_shows_where_a_users_model_failed_once_and_nothing_of_its_own_calls(job_file, tmp_path):
    (tmp_path / "narrow.py").write_text(MODEL)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    job = job_file(model={"name": "narrow:Narrow", "options": {"num_classes": 3}})
    found = run_cli("train", job, "--nodes", "train=1x1", PYTHONPATH=path)
    assert found.returncode == 1, found.stderr
    assert found.stdout == ""
    assert found.stderr.count("Traceback (most recent call last)") == 0
    assert found.stderr.count(f'File "{tmp_path}/narrow.py", line 10, in forward') == 1
    before, _, told = found.stderr.partition(
        f"raytrain: the training loop failed in {tmp_path}/narrow.py:10: RuntimeError: "
    )
    assert "File " not in before
    message, heading, *_, last = told.splitlines()
    assert heading == "on the rank:"
    assert "mat1 and mat2 shapes cannot be multiplied" in message and last.startswith("RuntimeError: ")
    assert not re.search(r"/raytrain/|/ray/|worker\.py|loop\.py|update\.py", found.stderr)


LARGE = """
import sys
from raytrain import Job, Pipeline, fit
from raytrain.data import decode, image_folder

TABLE = list(range(100_000))  # travels with the stage that uses it, and is too large for a message of Ray's

def brighten(image, rng):
    return image + TABLE[0]

def loop(ctx):
    for _ in ctx.epochs():
        for batch in ctx.batches():
            pass

if __name__ == "__main__":
    fit(loop, Pipeline(image_folder(sys.argv[1]), [decode(), brighten], batch_size=8),
        Job.from_dict({"name": "large", "training": {"epochs": 1}}), nodes="train=1x1")
"""


def test_nothing_of_rays_own_log_is_shown_though_a_stage_brings_much_along(images, tmp_path):
    script = tmp_path / "large.py"
    script.write_text(LARGE)
    found = subprocess.run(
        [sys.executable, str(script), str(images / "train")], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert not re.search(r"\.cc:|WARN|INFO|ray::", found.stderr), found.stderr
