"""The job of launch/digits.yaml written plainly with Ray Data and TorchTrainer, for benchmarks/startup.py.

    python benchmarks/plain_trainer.py FOLDER_OF_CLASS_FOLDERS MARK MODEL_OPTIONS_AS_JSON

Writes time.time() at the end of its first step to the file MARK, and ends.
"""

import json
import random
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import ray
import ray.train
import ray.train.torch
import timm.models
import torch


def load(batch):
    images = []
    for path in batch["path"]:
        image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        padded = cv2.copyMakeBorder(image, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
        top, left = np.random.randint(0, 5, size=2)
        small = cv2.resize(padded[top : top + 32, left : left + 32], (16, 16), interpolation=cv2.INTER_AREA)
        images.append(small.transpose(2, 0, 1))
    return {"image": np.stack(images), "label": batch["label"]}


def train(config):
    torch.set_num_threads(config["threads"])
    model = timm.models.VisionTransformer(**config["options"])
    model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    shard = ray.train.get_dataset_shard("train")
    for batch in shard.iter_torch_batches(batch_size=64):
        image = batch["image"].to(torch.float32) / 255 * 2 - 1
        loss = torch.nn.functional.cross_entropy(model(image), batch["label"])
        loss.backward()
        optimizer.step()
        Path(config["mark"]).write_text(str(time.time()))
        break


if __name__ == "__main__":
    folder, mark, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    classes = sorted(path.name for path in folder.iterdir())
    items = [{"path": str(path), "label": classes.index(path.parent.name)} for path in folder.glob("*/*.jpg")]
    random.shuffle(items)
    ray.init("local", log_to_driver=False)
    dataset = ray.data.from_items(items).map_batches(load)
    ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"options": options, "threads": 2, "mark": mark},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(storage_path=str(Path(mark).parent / "plain")),
        datasets={"train": dataset},
    ).fit()
