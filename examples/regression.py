"""Regression on a table: scikit-learn's diabetes data from a Parquet file. It ends at a validation R² of about 0.5.

python examples/regression.py
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_diabetes

from raytrain import Job, Pipeline, fit
from raytrain.data import held_out, parquet, stage


def write_table(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
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
        sums = np.zeros(4)
        for batch in ctx.batches("validation"):
            y = batch["target"]
            sums += [loss_of(batch).item() * batch.size, y.square().sum().item(), y.sum().item(), batch.size]
        wrong, squares, total, count = ctx.sum_over_ranks(*sums)
        ctx.log(validation_r2=1 - wrong / (squares - total**2 / count))


if __name__ == "__main__":
    table = parquet(write_table(Path("data/diabetes.parquet")))
    pipeline = Pipeline(table, [stage(as_vector, on="*")], batch_size=32, validation=held_out(0.2))
    record = fit(train_loop, pipeline, Job.from_dict({"name": "regression", "training": {"epochs": 5}}))
    print(f"validation R²: {record.epochs[-1]['validation_r2']:.2f}")
