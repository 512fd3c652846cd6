"""A user's own data set, transform, model and loop: python examples/own_everything.py FOLDER_OF_CLASS_FOLDERS"""

import sys

import numpy as np
import torch

from raytrain import Job, Pipeline, fit
from raytrain.data import decode, image_folder, resize


def speckle(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # runs on the CPU hosts, seeded per sample
    noise = rng.normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


class Model(torch.nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image / 255)


def train_loop(ctx) -> None:  # runs on every rank
    model = Model(ctx.num_classes)
    model(torch.zeros(1, 3, 16, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model, optimizer = ctx.prepare(model, optimizer)  # on the device, with DDP, and in every checkpoint
    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            loss = torch.nn.functional.cross_entropy(model(batch.image), batch.label)
            (loss * batch.weight).backward()  # so that every sample counts alike, whichever rank has it
            optimizer.step()
            optimizer.zero_grad()
            ctx.report(loss)


if __name__ == "__main__":
    pipeline = Pipeline(image_folder(sys.argv[1]), [decode(), speckle, resize(16)], batch_size=32)
    fit(train_loop, pipeline, Job.from_dict({"name": "own", "training": {"epochs": 2}}))
