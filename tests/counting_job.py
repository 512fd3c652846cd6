"""A user's job that writes down every sample its loop sees: python counting_job.py IMAGES RUNS NODES [--resume]

With a file `die` in RUNS, one rank kills itself at step 7, once; a file `step_s` says how long a step takes.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from raytrain import Job, Pipeline, fit
from raytrain.data import decode, image_folder, random_crop, resize

EPOCHS = 3


def note(folder: Path, **facts) -> None:
    with open(folder / "trace.jsonl", "a") as file:
        file.write(json.dumps(facts) + "\n")


def train_loop(ctx) -> None:
    folder = Path(ctx.job.run_dir)
    step_s = float((folder / "step_s").read_text()) if (folder / "step_s").exists() else 0.1
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = ctx.prepare(model, optimizer)
    note(folder, event="begin", pid=os.getpid(), rank=ctx.rank, steps=ctx.steps)
    for epoch in ctx.epochs():
        for batch in ctx.batches("train"):
            loss = torch.nn.functional.cross_entropy(model(batch.image), batch.label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(step_s)
            ids = batch.ids.tolist()
            note(folder, event="step", pid=os.getpid(), rank=ctx.rank, epoch=epoch, steps=ctx.steps + 1, ids=ids)
            ctx.report(loss)
            if ctx.steps == 7 and ctx.rank == ctx.world_size - 1 and (folder / "die").exists():
                (folder / "die").unlink()
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    images, runs, nodes = sys.argv[1:4]
    training = {"epochs": EPOCHS, "checkpoint": {"every_steps": 3}}
    job = Job.from_dict({"name": "counting", "run_dir": runs, "training": training})
    pipeline = Pipeline(
        image_folder(images), [decode(), random_crop(16, padding=1, padding_mode="edge"), resize(8)], batch_size=8
    )
    fit(train_loop, pipeline, job, nodes=nodes, resume="--resume" in sys.argv)
