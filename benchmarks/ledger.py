"""What the ledger costs: of a step, and of a checkpoint.

    python benchmarks/ledger.py [--rounds 5] [--smoke]

Part one: every batch of an epoch of a million samples, in the plan's order, is noted in a ledger; beside it a step of a
ResNet-18 at 224 pixels. Both in CPU time, which others on the machine do not change, the step's shared out among all
cores: the least that it could take. Part two: what a checkpoint of two ranks takes for it (counting, the exchange by
gloo, the union, packing) with 1.3 and 100 million samples, half of which are consumed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from functools import partial
from typing import Any

import numpy as np
from harness import interleave, spread, write

from raytrain.cluster import hardware
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.train.ledger import Ledger

RANKS = 2


def account(num_samples: int, batch_size: int) -> dict[str, float]:
    """CPU microseconds a batch, over an epoch."""
    plan = StreamPlan(StreamSpec(num_samples, 0, batch_size, 0, epochs=1), Position(), 1)
    keys, ledger = plan.segment_keys(0), Ledger(num_samples)
    batches = [keys[slice(*plan.bounds(0, number))] for number in range(plan.segments[0].num_batches)]
    began = time.thread_time()
    for batch in batches:
        ledger.add(batch)
    return {"us": 1e6 * (time.thread_time() - began) / len(batches), "num_own": ledger.num_own}


def step(batch_size: int, side: int) -> dict[str, float]:
    """CPU microseconds by core; of the second of two."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(batch_size, 3, side, side), torch.randint(1000, (batch_size,))
    for _ in range(2):
        began = time.process_time()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"us": 1e6 * (time.process_time() - began) / hardware.usable_cpus()}


def checkpoint_of(rank: int, num_samples: int, meeting: str, answers: Any) -> None:
    """One of two ranks that have consumed a quarter each; the first tells seconds and bytes."""
    import torch
    import torch.distributed as dist

    from raytrain.train.checkpoints.checkpoint import pack
    from raytrain.train.update import sum_of_bits

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    ledger = Ledger(num_samples)
    ledger.own[:] = 0b10001000 >> rank
    told = [ledger.num_own] * RANKS, [set[int]()] * RANKS
    dist.barrier()
    began = time.perf_counter()
    assert ledger.num_own == told[0][rank]
    own = sum_of_bits(ledger.own, torch.device("cpu"), RANKS)
    exchanged = time.perf_counter()
    consumed, owed = ledger.union(own, *told)
    data = pack({"consumed": torch.from_numpy(consumed), "owed": torch.from_numpy(owed)})
    if rank == 0:
        took = {"exchange_s": exchanged - began, "s": time.perf_counter() - began}
        answers.put({**took, "bits_a_sample": 8 * len(data) / num_samples})
    dist.destroy_process_group()


def checkpoint(num_samples: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        answers = context.Queue()
        ranks = [
            context.Process(target=checkpoint_of, args=(rank, num_samples, f"{folder}/ranks", answers))
            for rank in range(RANKS)
        ]
        for each in ranks:
            each.start()
        answer = answers.get(timeout=300)
        for each in ranks:
            each.join()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="small, one round, nothing written")
    arguments = parser.parse_args()
    rounds, samples, side = (1, 20_000, 8) if arguments.smoke else (arguments.rounds, 1_000_000, 224)
    sizes, runs = (64, 256), (100_000,) if arguments.smoke else (1_300_000, 100_000_000)
    variants: dict[str, Any] = {f"ledger, {size}": partial(account, samples, size) for size in sizes}
    variants |= {f"step, {size}": partial(step, size, side) for size in sizes}
    variants |= {f"checkpoint, {count:,}": partial(checkpoint, count) for count in runs}
    rows = interleave(variants, rounds)
    figures = {}
    for size in sizes:
        pairs = zip(rows[f"ledger, {size}"], rows[f"step, {size}"], strict=True)
        figures[f"ledger / step, batches of {size}, percent"] = spread([100 * a["us"] / b["us"] for a, b in pairs])
        figures[f"ledger, batches of {size}, us"] = spread([row["us"] for row in rows[f"ledger, {size}"]])
    for count in runs:
        figures[f"checkpoint of {count:,}, s"] = spread([row["s"] for row in rows[f"checkpoint, {count:,}"]])
    for name, values in figures.items():
        print(
            name, {key: float(np.format_float_positional(value, 4, fractional=False)) for key, value in values.items()}
        )
    if not arguments.smoke:
        print(write("ledger", rows, figures, rounds=rounds, samples=samples, side=side, ranks=RANKS))


if __name__ == "__main__":
    main()
