"""Several labels a sample: of a handwritten digit, whether it is even, is prime, and has a loop. It ends at a
validation F1 of about 0.92.

python examples/multi_label.py
"""

import numpy as np
import torch
from sklearn.datasets import load_digits

from raytrain import Job, Pipeline, fit
from raytrain.data import arrays, held_out, random_crop

LABELS = {"even": {0, 2, 4, 6, 8}, "prime": {2, 3, 5, 7}, "loop": {0, 6, 8, 9}}


def digits() -> dict[str, np.ndarray]:
    data = load_digits()
    wanted = np.array([[digit in group for group in LABELS.values()] for digit in data.target], np.float32)
    return {"image": (data.images[..., None] * 15).astype(np.uint8), "labels": wanted}


def train_loop(ctx) -> None:
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, len(LABELS))
    )
    model, optimizer = ctx.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    update = ctx.updater(model, optimizer)
    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            update(
                batch,
                lambda batch: torch.nn.functional.binary_cross_entropy_with_logits(model(batch.image), batch["labels"]),
            )
        both = said = there = 0
        for batch in ctx.batches("validation"):
            found, wanted = model(batch.image) > 0, batch["labels"] == 1
            both, said, there = both + int((found & wanted).sum()), said + int(found.sum()), there + int(wanted.sum())
        both, said, there = ctx.sum_over_ranks(both, said, there)
        ctx.log(validation_f1=2 * both / (said + there))


if __name__ == "__main__":
    shift = random_crop(8, padding=1, padding_mode="edge")
    pipeline = Pipeline(
        arrays(digits()), [shift], batch_size=64, validation=held_out(0.2), normalize={"scale": 1 / 240}
    )
    record = fit(train_loop, pipeline, Job.from_dict({"name": "multi-label", "training": {"epochs": 10}}))
    print(f"validation F1: {record.epochs[-1]['validation_f1']:.2f}")
