"""The part `pipeline` of `inference.py`: what the whole way reaches of what each back end's own tool gets on a core.

One stream with one core predicts synthetic bytes that other cores prepare: `raytrain.predict` from reading to Parquet.
Beside it, on the same core (by `taskset`) and with batches of the same size that lie there: OpenVINO's `benchmark_app`,
torch's `torch.backends.xeon.run_cpu`, and for ONNX Runtime, whose perf test no wheel brings, a loop of
`InferenceSession.run`. The model is a ViT-Ti at 224 px with random weights.
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

import numpy as np
from harness import interleave, ratio, write

MODEL, SIDE, BATCH = "vit_tiny_patch16_224", 224, 16
BACK_ENDS = ("eager", "onnx", "openvino")
CORE = "1"
TORCH_LOOP = """
import sys, time, timm, torch
torch.manual_seed(0)
model = timm.create_model({model!r}).eval()
batch = torch.rand({batch}, 3, {side}, {side})
with torch.inference_mode():
    for _ in range(3):
        model(batch)
    began, batches = time.perf_counter(), 0
    while time.perf_counter() - began < {seconds}:
        model(batch)
        batches += 1
print("RATE", batches * {batch} / (time.perf_counter() - began))
"""
ONNX_LOOP = """
import sys, time, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
batch = {{session.get_inputs()[0].name: np.random.rand({batch}, 3, {side}, {side}).astype(np.float32)}}
for _ in range(3):
    session.run(None, batch)
began, batches = time.perf_counter(), 0
while time.perf_counter() - began < {seconds}:
    session.run(None, batch)
    batches += 1
print("RATE", batches * {batch} / (time.perf_counter() - began))
"""


def through_raytrain(back_end: str, samples: int, folder: Path) -> dict[str, float]:
    """`predict` in a process of its own, on a cluster of this machine."""
    job = {
        "name": back_end,
        "run_dir": str(folder),
        "model": {"name": MODEL},
        "data": {
            "source": {
                "kind": "synthetic",
                "num_samples": samples,
                "fields": {"image": {"dtype": "uint8", "shape": [SIDE, SIDE, 3]}},
            },
            "normalize": {"mean": [0.5], "std": [0.5]},
        },
        "output": {"path": str(folder / "out"), "shard_rows": samples},
        "inference": {"backend": back_end, "batch_size": BATCH, "streams": {"count": 1, "cores": 1}},
    }
    code = (
        "import json, sys\nfrom raytrain import PredictionJob, predict\n"
        "record = predict(PredictionJob.from_dict(json.loads(sys.argv[1])))\n"
        "print('FIGURES', record.figures.model_dump_json())\n"
    )
    told = _run([sys.executable, "-c", code, json.dumps(job)])
    figures = json.loads(re.search(r"FIGURES (.*)", told)[1])  # type: ignore[index]
    return {"samples_per_s": figures["together"], "alone": figures["model"], "prepare": figures["prepare"]}


def by_its_tool(back_end: str, seconds: float, onnx: Path) -> dict[str, float]:
    about = {"model": MODEL, "batch": BATCH, "side": SIDE, "seconds": seconds}
    pinned = ["taskset", "-c", CORE]
    if back_end == "eager":
        with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
            script.write(TORCH_LOOP.format(**about))
            script.flush()
            launcher = [sys.executable, "-m", "torch.backends.xeon.run_cpu", "--ninstances", "1"]
            told = _run(
                [*launcher, "--core-list", CORE, "--ncores-per-instance", "1", "--use-default-allocator", script.name]
            )
    elif back_end == "onnx":
        told = _run([*pinned, sys.executable, "-c", ONNX_LOOP.format(**about), str(onnx)])
    else:
        shape = f"[{BATCH},3,{SIDE},{SIDE}]"
        app = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(onnx), "-d", "CPU", "-api", "sync"]
        told = _run(
            [
                *pinned,
                *app,
                "-hint",
                "none",
                "-infer_precision",
                "f32",
                "-nthreads",
                "1",
                "-nstreams",
                "1",
                "-t",
                f"{seconds:g}",
                "-shape",
                shape,
            ]
        )
        return {"samples_per_s": float(re.search(r"Throughput:\s+([\d.]+) FPS", told)[1])}  # type: ignore[index]
    return {"samples_per_s": float(re.search(r"RATE ([\d.]+)", told)[1])}  # type: ignore[index]


def _run(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if ended.returncode:
        raise SystemExit(f"{command[:6]} failed:\n{ended.stdout[-1000:]}\n{ended.stderr[-2000:]}")
    return ended.stdout + ended.stderr


def onnx_file(folder: Path) -> Path:
    """As raytrain makes it for both back ends."""
    from raytrain.config.inference import PredictingModel
    from raytrain.infer.backends.convert import converted
    from raytrain.infer.backends.find import find_model
    from raytrain.infer.contract import BackendOptions

    example = (np.zeros((2, 3, SIDE, SIDE), np.float32),)
    file = converted(find_model(PredictingModel(name=MODEL)), BackendOptions(backend="onnx", batch_size=BATCH), example)
    path = folder / "model.onnx"
    path.write_bytes(file.data)
    return path


def pipeline(arguments: Any) -> None:
    """Prints and keeps the ratios."""
    back_ends, rounds, seconds = BACK_ENDS, arguments.rounds, arguments.seconds
    samples = max(int(seconds * 40), 4 * BATCH)  # a core predicts about so many a second
    if arguments.smoke:
        back_ends, rounds, seconds, samples = ("onnx",), 1, 0.5, 4 * BATCH
    with tempfile.TemporaryDirectory(prefix="raytrain-inference-") as folder:
        onnx = onnx_file(Path(folder))
        count = 0

        def ours(back_end: str) -> Callable[[], dict[str, float]]:
            def measure() -> dict[str, float]:
                nonlocal count
                count += 1
                return through_raytrain(back_end, samples, Path(folder) / str(count))

            return measure

        variants: dict[str, Callable[[], dict[str, float]]] = {}
        for each in back_ends:
            variants[each] = ours(each)
            variants[f"{each}, its tool"] = lambda each=each: by_its_tool(each, seconds, onnx)
        rows = interleave(variants, rounds)
    ratios = {
        f"{each}: through raytrain / its tool": ratio(rows, "samples_per_s", each, f"{each}, its tool")
        for each in back_ends
    }
    for name, found in ratios.items():
        print(name, {key: round(value, 3) for key, value in found.items()})
    if not arguments.smoke:
        print(write("inference_pipeline", rows, ratios, model=MODEL, batch_size=BATCH, samples=samples))
