"""A data set and transforms of a torch project, as they are. It ends at an accuracy of about 0.93.

python examples/with_torch.py
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from torchvision.transforms import v2

from raytrain import Job, Pipeline, fit
from raytrain.data import from_torch, held_out


class Digits(Dataset):
    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (channels, height, width)
        self.targets = torch.tensor(digits.target)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.targets[index]


def train_loop(ctx) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model, optimizer = ctx.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
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
    stages = [v2.RandomAffine(degrees=10, translate=(0.1, 0.1))]
    pipeline = Pipeline(from_torch(Digits()), stages, batch_size=64, validation=held_out(0.2))
    record = fit(train_loop, pipeline, Job.from_dict({"name": "with-torch", "training": {"epochs": 3}}))
    print(f"validation accuracy: {record.epochs[-1]['validation_accuracy']:.2f}")
