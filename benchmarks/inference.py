"""What prediction reaches, part by part.

    python benchmarks/inference.py [streams|pipeline|sharing] [--rounds 3] [--seconds 8] [--cases vit_224] [--smoke]

`streams`: a model alone on all cores of this machine, round by round: one instance as torch starts it, a pinned stream
a core, the same with glibc's allocator tuned, and as many instances by torch's own launcher
(`torch.backends.xeon.run_cpu`) with the allocator as it comes. A ViT and a BERT-shaped encoder with random weights.
Beside samples a second those that a second of CPU time makes: on a machine with other work, this one says more.

`pipeline`: the whole way against each back end's own tool, see inference_pipeline.py.

`sharing`: several tasks on one GPU, see inference_sharing.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import interleave, ratio, write
from inference_pipeline import pipeline
from inference_sharing import sharing
from predicted import CASES, WARM_UP, batch_of, load

from raytrain.config.inference import Streams
from raytrain.infer.contract import BackendOptions, ModelFile, Timed
from raytrain.infer.streams.alone import Alone, in_common
from raytrain.infer.streams.shapes import plan_streams
from raytrain.infer.streams.topology import read_topology

LOOP = Path(__file__).parent / "predicted.py"
BATCHES = {"vit_224": 2, "vit_96": 8, "bert_256": 1, "bert_32": 4}  # a fifth of a second or two each on a core
SMOKE = ("vit_96", 1, 0.3)  # case, batch size, seconds


def figures(timed: Timed) -> dict[str, float]:
    return {
        "samples_per_s": timed.samples_per_s,
        "p50_s": timed.percentile(0.5),
        "p99_s": timed.percentile(0.99),
        "samples_per_cpu_s": 1 / timed.extra["cpu_s"],
        "batches": len(timed.latencies_s),
    }


def by_loop(command: list[str], case: str, size: int, seconds: float, instances: int) -> dict[str, float]:
    """The loop of `predicted.py`, started by `command`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(LOOP), case, str(size), str(seconds), folder, str(instances)]
        ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)
        told = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    if ended.returncode or len(told) != instances:
        raise SystemExit(f"{case}: {len(told)} of {instances} instances ended well:\n{ended.stderr[-2000:]}")
    rates, latencies = in_common([each["marks"] for each in told], [size])
    return figures(Timed(sum(rates), latencies, 0.0, {"cpu_s": statistics.mean(each["cpu_s"] for each in told)}))


def variants(alone: Alone, case: str, size: int, seconds: float) -> dict[str, Callable[[], dict[str, float]]]:
    shapes = plan_streams(read_topology(), Streams(), "throughput")
    count = len(shapes)
    launcher = [sys.executable, "-m", "torch.backends.xeon.run_cpu", "--ninstances", str(count)]
    launcher += ["--ncores-per-instance", "1", "--use-default-allocator"]
    batches = [(batch_of(case, size),)]

    def streams(allocator: str) -> dict[str, float]:
        file = ModelFile("module", b"", source=case)
        asked = Streams.model_validate({"allocator": allocator})
        options = BackendOptions(batch_size=size)
        return figures(
            alone.measure(load, file, options, batches, shapes, asked, seconds=seconds, warm_up_batches=WARM_UP)
        )

    return {
        "one": lambda: by_loop([sys.executable], case, size, seconds, 1),
        "streams": lambda: streams("default"),
        "run_cpu": lambda: by_loop(launcher, case, size, seconds, count),
        "glibc": lambda: streams("glibc"),
    }


def streams(arguments: argparse.Namespace) -> None:
    cases = {case: (BATCHES[case], arguments.seconds) for case in arguments.cases}
    rounds = arguments.rounds
    if arguments.smoke:
        rounds, cases = 1, {SMOKE[0]: SMOKE[1:]}
    rows, ratios = {}, {}
    with Alone() as alone:
        for case, (size, seconds) in cases.items():
            rows[case] = interleave(variants(alone, case, size, seconds), rounds)
            for one, other in (("streams", "run_cpu"), ("streams", "one"), ("glibc", "streams")):
                for figure in ("samples_per_s", "samples_per_cpu_s"):
                    name = f"{case}: {one} / {other}, {figure}"
                    ratios[name] = ratio(rows[case], figure, one, other)
                    print(name, {key: round(value, 3) for key, value in ratios[name].items()}, flush=True)
            if not arguments.smoke:  # what is there is kept if a later case fails
                sizes = {each: BATCHES[each] for each in rows}
                print(write("inference_streams", rows, ratios, seconds=arguments.seconds, batch_sizes=sizes))


PARTS = {"streams": streams, "pipeline": pipeline, "sharing": sharing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--smoke", action="store_true", help="one short round of one case, nothing written")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.part = arguments.part or "streams"  # the others start Ray
    for name, part in PARTS.items():
        if arguments.part in (None, name):
            part(arguments)


if __name__ == "__main__":
    main()
