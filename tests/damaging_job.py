"""A user's job that damages the store of its own checkpoints: unshare --mount python damaging_job.py IMAGES RUNS

Its keeper is killed in the first epoch, while a checkpoint is being written. In the second their folder is moved away,
and comes back after four steps. From the third on it is read-only.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

from raytrain import Job, Pipeline, fit
from raytrain.data import decode, image_folder, resize
from raytrain.train.checkpoints import writer

NAME = "damaged"


def kill_the_keeper() -> None:
    """Its process: Ray gives it the actor's name."""
    siblings = psutil.Process().parent().children()  # of this run's raylet
    [keeper] = [process for process in siblings if process.name().startswith("ray::Keeper")]
    os.kill(keeper.pid, signal.SIGKILL)


def train_loop(ctx) -> None:
    writer.WAITS_S = (0.1,) * 30
    folder = Path(ctx.job.run_dir) / NAME / "checkpoints"
    away = folder.with_name("away")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, 3), torch.nn.Linear(3, 1_000_000))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = ctx.prepare(model, optimizer)
    for epoch in ctx.epochs():
        if epoch == 2:
            while ctx._keep.busy:  # with that of the second epoch's end
                time.sleep(0.01)
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        for batch in ctx.batches("train"):
            loss = torch.nn.functional.cross_entropy(model[:2](batch.image), batch.label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(0.1)
            ctx.report(loss)
            if ctx.steps == 3:
                kill_the_keeper()
            if ctx.steps == 8 + 1:
                folder.rename(away)
            if ctx.steps == 8 + 5:
                away.rename(folder)


if __name__ == "__main__":
    images, runs = sys.argv[1:3]
    training = {"epochs": 3, "checkpoint": {"every_steps": 3}}
    job = Job.from_dict({"name": NAME, "run_dir": runs, "training": training})
    pipeline = Pipeline(image_folder(images), [decode(), resize(8)], batch_size=16)
    fit(train_loop, pipeline, job, nodes="train=1x1")
