"""Text of any length: docstrings of NumPy and of torch are told apart by their bytes. Batches hold texts
of like length, filled up to their longest. It ends at an accuracy of about 0.97.

python examples/text.py
"""

import inspect

import numpy as np
import torch

from raytrain import Job, Pipeline, fit
from raytrain.data import from_torch, held_out, padded, stage


def docstrings() -> list[dict]:
    found = [(inspect.getdoc(getattr(np, name)) or "", 0) for name in sorted(dir(np))]
    found += [(inspect.getdoc(getattr(torch, name)) or "", 1) for name in sorted(dir(torch))]
    return [{"text": text, "label": label} for text, label in dict(found).items() if len(text) > 40]


def to_bytes(sample: dict) -> dict:
    return {"tokens": np.frombuffer(sample["text"].encode()[:400], np.uint8).astype(np.int64), "label": sample["label"]}


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.look = torch.nn.Embedding(256, 32), torch.nn.Conv1d(32, 64, 5, padding=2)
        self.head = torch.nn.Linear(64, 2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.look(self.embed(tokens).transpose(1, 2)))
        return self.head(seen.masked_fill(~mask[:, None], 0).amax(2))


def train_loop(ctx) -> None:
    model = Model()
    model, optimizer = ctx.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.003))
    update = ctx.updater(model, optimizer)
    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            update(batch, lambda b: torch.nn.functional.cross_entropy(model(b["tokens"], b["tokens_mask"]), b.label))
        right = total = 0
        for batch in ctx.batches("validation"):
            right += int((model(batch["tokens"], batch["tokens_mask"]).argmax(1) == batch.label).sum())
            total += batch.size
        right, total = ctx.sum_over_ranks(right, total)
        ctx.log(validation_accuracy=right / total)


if __name__ == "__main__":
    together = {"collate": {"tokens": padded()}, "buckets": {"by": "text"}}
    stages = [stage(to_bytes, on="*")]
    pipeline = Pipeline(from_torch(docstrings()), stages, batch_size=32, validation=held_out(0.2), **together)
    record = fit(train_loop, pipeline, Job.from_dict({"name": "text", "training": {"epochs": 4}}))
    print(f"validation accuracy: {record.epochs[-1]['validation_accuracy']:.2f}")
