"""Models and inputs that prediction is measured with, and the loop that torch's launcher and a plain script run.

    python benchmarks/predicted.py CASE BATCH_SIZE SECONDS FOLDER INSTANCES

Loads the model, waits until all instances are ready, runs for some seconds and writes when each batch was done, and
what a sample took of the CPUs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WARM_UP = 3
WIDTH, HEADS, LAYERS, HIDDEN = 768, 12, 12, 3072  # BERT base


def _vit(side: int) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        import timm

        return timm.create_model("vit_small_patch16_224", img_size=side)

    return make


def _encoder() -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, activation="gelu", batch_first=True)
    return torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


CASES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {  # model, shape of a sample
    "vit_224": (_vit(224), (3, 224, 224)),
    "vit_96": (_vit(96), (3, 96, 96)),
    "bert_256": (_encoder, (256, WIDTH)),
    "bert_32": (_encoder, (32, WIDTH)),
}


def model_of(case: str) -> torch.nn.Module:
    """With random weights, the same in every process."""
    torch.manual_seed(0)
    return CASES[case][0]().eval()


def batch_of(case: str, size: int) -> torch.Tensor:
    return torch.rand((size, *CASES[case][1]), generator=torch.Generator().manual_seed(1))


def load(file: Any, options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `raytrain.infer.streams.alone` wants it; `file.source` is the case."""
    model = model_of(file.source)

    def predict(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(batch)

    return predict


@torch.inference_mode()
def main() -> None:
    case, folder = sys.argv[1], Path(sys.argv[4])
    size, seconds, instances = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[5])
    model, batch = model_of(case), batch_of(case, size)
    for _ in range(WARM_UP):
        model(batch)
    (folder / f"{os.getpid()}.ready").touch()
    while len(list(folder.glob("*.ready"))) < instances:
        time.sleep(0.001)
    marks, before = [time.monotonic()], time.process_time()
    while marks[-1] - marks[0] < seconds:
        model(batch)
        marks.append(time.monotonic())
    used = (time.process_time() - before) / (size * (len(marks) - 1))
    (folder / f"{os.getpid()}.json").write_text(json.dumps({"marks": marks, "cpu_s": used}))


if __name__ == "__main__":
    main()
