"""A data set of one's own: python examples/own_source.py, or by its name in examples/own_source.yaml"""

import numpy as np
import torch
from sklearn.datasets import load_digits

from raytrain import Job, Pipeline, fit


class Digits:
    """Like any map-style data set of torch; every fifth digit is for validation."""

    def __init__(self, validation: bool = False):
        digits = load_digits()
        held_out = np.arange(len(digits.target)) % 5 == 0
        kept = held_out if validation else ~held_out
        self.images = (digits.images[kept] * 15).astype(np.uint8)
        self.labels = digits.target[kept]  # all of them, so that no image need be read to know its own
        self.classes = [str(name) for name in digits.target_names]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index, :, :, np.newaxis], self.labels[index]  # (height, width, channels)


def train_loop(ctx) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8, ctx.num_classes))
    model, optimizer = ctx.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.02))
    update = ctx.updater(model, optimizer)
    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            update(batch, lambda batch: torch.nn.functional.cross_entropy(model(batch.image), batch.label))
        right = total = 0
        for batch in ctx.batches("validation"):
            right += int((model(batch.image).argmax(1) == batch.label).sum())
            total += batch.size
        right, total = ctx.sum_over_ranks(right, total)
        ctx.log(validation_accuracy=right / total)


if __name__ == "__main__":
    pipeline = Pipeline(Digits(), batch_size=64, validation=Digits(validation=True), normalize={"scale": 1 / 240})
    fit(train_loop, pipeline, Job.from_dict({"name": "own-source", "training": {"epochs": 3}}))
