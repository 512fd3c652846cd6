"""Two images a sample: whether two handwritten digits are the same. It ends at an accuracy of about 0.82.

python examples/siamese.py
"""

import numpy as np
import torch
from sklearn.datasets import load_digits

from raytrain import Job, Pipeline, fit
from raytrain.data import from_torch, random_crop


class Pairs:
    """Every second pair is of one digit."""

    def __init__(self, numbers: range):
        digits = load_digits()
        self.images = (digits.images[numbers][..., None] * 15).astype(np.uint8)
        self.digits = digits.target[numbers]

    def __len__(self) -> int:
        return 2 * len(self.digits)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.float32]:
        one, same = index // 2, index % 2 == 0
        rng = np.random.default_rng(index)
        other = rng.choice(np.flatnonzero((self.digits == self.digits[one]) == same))
        return self.images[one], self.images[other], np.float32(same)


def train_loop(ctx) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    model, optimizer = ctx.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.003))
    update = ctx.updater(model, optimizer)

    def likeness(batch):
        both = model(torch.cat([batch["left"], batch["right"]]))
        return 4 - torch.nn.functional.pairwise_distance(*both.chunk(2))

    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            update(batch, lambda b: torch.nn.functional.binary_cross_entropy_with_logits(likeness(b), b["same"]))
        right = total = 0
        for batch in ctx.batches("validation"):
            right += int(((likeness(batch) > 0) == batch["same"].bool()).sum())
            total += batch.size
        right, total = ctx.sum_over_ranks(right, total)
        ctx.log(validation_accuracy=right / total)


if __name__ == "__main__":
    names = {"fields": ["left", "right", "same"], "images": ["left", "right"]}
    train, validation = (from_torch(Pairs(part), **names) for part in (range(1400), range(1400, 1797)))
    stages = [random_crop(8, padding=1, padding_mode="edge")]  # the same shift of both
    pipeline = Pipeline(train, stages, batch_size=64, validation=validation, normalize={"scale": 1 / 240})
    record = fit(train_loop, pipeline, Job.from_dict({"name": "siamese", "training": {"epochs": 6}}))
    print(f"validation accuracy: {record.epochs[-1]['validation_accuracy']:.2f}")
