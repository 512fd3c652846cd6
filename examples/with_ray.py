"""A pipeline of Ray Data that is there already goes on as it is. It ends at an accuracy of about 0.93.

python examples/with_ray.py
"""

import numpy as np
import ray
import torch
from sklearn.datasets import load_digits

from raytrain import Job, Pipeline, fit
from raytrain.data import from_ray, held_out, random_crop


def brighten(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**batch, "image": (batch["image"] * 15).astype(np.uint8)}


def dataset() -> ray.data.Dataset:
    digits = load_digits()
    rows = [{"image": i[..., None], "label": int(n)} for i, n in zip(digits.images, digits.target, strict=True)]
    return ray.data.from_items(rows, override_num_blocks=8).map_batches(brighten)


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
    stages = [random_crop(8, padding=1, padding_mode="edge")]  # raytrain's own come behind the data set's
    pipeline = Pipeline(
        from_ray(dataset()), stages, batch_size=64, validation=held_out(0.2), normalize={"scale": 1 / 240}
    )
    record = fit(train_loop, pipeline, Job.from_dict({"name": "with-ray", "training": {"epochs": 12}}))
    print(f"validation accuracy: {record.epochs[-1]['validation_accuracy']:.2f}")
