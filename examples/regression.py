"""Regression on a table: scikit-learn's diabetes data from a Parquet file. python examples/regression.py [FOLDER]"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_diabetes

from raytrain import Job, Pipeline, fit
from raytrain.data import held_out, parquet, stage


def write_table(path: Path) -> Path:
    data = load_diabetes(as_frame=True).frame
    pq.write_table(pa.Table.from_pandas(data, preserve_index=False), path, row_group_size=100)
    return path


def as_vector(row: dict) -> dict:  # ten columns become one field; the target is a float
    features = np.array([value for name, value in row.items() if name != "target"], np.float32)
    return {"features": features * 20, "target": np.float32((row["target"] - 152) / 77)}


def train_loop(ctx) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    model, optimizer = ctx.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    update = ctx.updater(model, optimizer)

    def loss_of(batch):
        return torch.nn.functional.mse_loss(model(batch["features"]).squeeze(1), batch["target"])

    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            update(batch, loss_of)
        wrong = total = 0.0
        for batch in ctx.batches("validation"):
            with torch.no_grad():
                wrong += float(loss_of(batch)) * batch.size
            total += batch.size
        wrong, total = ctx.sum_over_ranks(wrong, total)
        ctx.log(validation_loss=wrong / total)  # of a target whose variance is 1: 1 - R²


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    folder.mkdir(parents=True, exist_ok=True)
    table = parquet(write_table(folder / "diabetes.parquet"))
    pipeline = Pipeline(table, [stage(as_vector, on="*")], batch_size=32, validation=held_out(0.2))
    job = {"name": "regression", "training": {"epochs": 20, "checkpoint": {"best": "validation_loss"}}}
    record = fit(train_loop, pipeline, Job.from_dict(job))
    print(f"validation R²: {1 - min(epoch['validation_loss'] for epoch in record.epochs):.2f}")
