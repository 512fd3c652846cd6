"""The part `sharing` of `inference.py`: how much several tasks on one GPU are worth, by `inference.tasks_per_gpu`.

JPEG photographs are read from disk, decoded, cropped to 224 px (light), or blurred ten times besides (heavy), and
predicted by a ViT-B/16 and a ResNet-50 with random weights. Every figure is of `raytrain.predict`: samples a second of
the whole way, of the model alone, and the share of time in which the GPU ran a kernel, as NVML has it.

Without an NVIDIA GPU only the short form runs, on an emulated one, with a tiny model: it shows no more than that all of
it works.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import interleave, ratio, write
from workloads import written

from raytrain.cluster import hardware

TASKS = (1, 2, 4, 8)
MODELS = {"vit_base_patch16_224": 64, "resnet50": 64}  # samples a batch
BAR = 1.67  # of one task's throughput: 40 % less time
LIGHT = ({"decode": {}}, {"resize": {"size": 256}}, {"center_crop": {"size": 224}})
HEAVY = (*LIGHT, "ten_blurs:blurred")
PIPELINES = {"light": LIGHT, "heavy": HEAVY}
EMULATED = "gpu=1x2x1"


def measured(model: str, stages: Any, tasks: int, folder: Path, images: Path, nodes: str | None) -> dict[str, Any]:
    """`predict` in a process of its own."""
    job = {
        "name": "sharing",
        "run_dir": str(folder),
        "model": {"name": model},
        "data": {
            "source": {"kind": "image_folder", "path": str(images)},
            "stages": list(stages),
            "normalize": {"mean": [0.5] * 3, "std": [0.5] * 3},
        },
        "inference": {"tasks_per_gpu": tasks, "batch_size": MODELS.get(model, 8)},
    }
    code = (
        "import json, sys\nfrom raytrain import PredictionJob, predict\n"
        "record = predict(PredictionJob.from_dict(json.loads(sys.argv[1])), nodes=json.loads(sys.argv[2]))\n"
        "busy = [each.gpu_busy_share for each in record.streams]\n"
        "print('FIGURES', json.dumps([record.figures.model_dump(mode='json'), busy]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(job), json.dumps(nodes)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=Path(__file__).parent)
    if ended.returncode:
        raise SystemExit(f"{model}, {tasks} a GPU, failed:\n{ended.stdout[-1000:]}\n{ended.stderr[-2000:]}")
    figures, busy = json.loads(re.search(r"FIGURES (.*)", ended.stdout)[1])  # type: ignore[index]
    return {"samples_per_s": figures["together"], "alone": figures["model"], "gpu_busy": busy, "streams": len(busy)}


def sharing(arguments: Any) -> None:
    """Prints and keeps the ratios."""
    models, tasks, pipelines, nodes, samples = tuple(MODELS), TASKS, PIPELINES, None, 4000
    if arguments.smoke:
        models, tasks, pipelines, nodes, samples = ("vit_tiny_patch16_224",), (1, 2), {"heavy": HEAVY}, EMULATED, 24
    elif not hardware.gpu_names():
        print("sharing: no NVIDIA GPU here; left out (--smoke runs it on an emulated one)")
        return
    images = written("sharing" if not arguments.smoke else "sharing_smoke", samples, min(samples, 64), (375, 500, 3))
    rows, ratios = {}, {}
    with tempfile.TemporaryDirectory(prefix="raytrain-sharing-") as folder:
        count = 0

        def variant(model: str, stages: Any, each: int) -> Callable[[], dict[str, Any]]:
            def measure() -> dict[str, Any]:
                nonlocal count
                count += 1
                return measured(model, stages, each, Path(folder) / str(count), images, nodes)

            return measure

        for model in models:
            for kind, stages in pipelines.items():
                of = {f"{each} a GPU": variant(model, stages, each) for each in tasks}
                found = interleave(of, 1 if arguments.smoke else arguments.rounds)
                rows |= {f"{model}, {kind}: {each}": row for each, row in found.items()}
                for each in tasks[1:]:
                    name = f"{model}, {kind}: {each} / 1 a GPU, samples_per_s"
                    ratios[name] = ratio(found, "samples_per_s", f"{each} a GPU", "1 a GPU")
                    print(name, {key: round(value, 3) for key, value in ratios[name].items()}, flush=True)
    if not arguments.smoke:
        print(write("inference_sharing", rows, ratios, bar=BAR, batch_sizes=MODELS, samples=samples))
