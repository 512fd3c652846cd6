"""What checkpoints cost the training: written beside it, and while it waits.

    python benchmarks/checkpointing.py [--rounds 3] [--layers 24] [--batch 1] [--every 100] [--smoke]

A decoder of 353 million parameters (width 1,024, 24 layers, a vocabulary of 50,257) with AdamW: 4.2 GB of state in
float32, trained on this machine's device in steps of `batch` x 128 tokens. The keeper is an actor, as in a run, and the
state goes to it through the object store. A round of each variant is one checkpoint and the steps that follow it until
it is on disk; the steps of `none` are those that are compared with.

`beside` is the writer of a run; `waiting` is the same one, waited for at once, as a run without it would. Both copy the
state to host memory first, so that a rank holds it twice; `waiting` need not, and its seconds without the copy are said
beside it.

What share of the time a checkpoint every `every` steps takes is computed: (what the step waited + what the steps beside
it took longer) / (that + `every` steps as measured without one). A run of so many steps would take an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import interleave, ratio, spread, write

from raytrain.cluster import local
from raytrain.cluster.environment import prepare_environment
from raytrain.run.rank import asked
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.checkpoints.keeper import Keeper, make_folder
from raytrain.train.checkpoints.writer import Writer

WIDTH, HEADS, WORDS, TOKENS = 1024, 16, 50257, 128


class Decoder(torch.nn.Module):
    """Its output layer has the weights of its embedding."""

    def __init__(self, layers: int, width: int, words: int):
        super().__init__()
        self.embedding = torch.nn.Embedding(words, width)
        layer = torch.nn.TransformerEncoderLayer(
            width, HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.layers(self.embedding(tokens), mask=mask, is_causal=True) @ self.embedding.weight.T


class Training:
    """Steps of it, and checkpoints of it."""

    def __init__(self, layers: int, width: int, words: int, batch: int, keeper: Any):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Decoder(layers, width, words).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.tokens = torch.randint(words, (batch, TOKENS), device=self.device)
        self.keep, self.steps = Writer(asked(keeper), print), 0

    def step(self) -> float:
        """Its seconds."""
        began = time.perf_counter()
        logits = self.model(self.tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()
        self.steps += 1
        return time.perf_counter() - began

    def checkpoint(self) -> float:
        """Seconds that the training waits."""
        facts = shelf.Facts(0, self.steps, self.steps, 0, 0, "f", 0, 1)
        began = time.perf_counter()
        self.keep(facts, {"rng": [checkpoint.rng_state()]}, [self.model, self.optimizer])
        return time.perf_counter() - began

    def end(self) -> None:
        error = self.keep.close()
        if error is not None:
            raise SystemExit(error)

    # --- variants ---

    def none(self, steps: int) -> dict[str, float]:
        taken = [self.step() for _ in range(steps)]
        return {"step_s": sum(taken) / steps, "steps": steps}

    def beside(self, steps: int) -> dict[str, float]:
        """At least so many steps, and until it is on disk."""
        written_s = self.keep.write_s
        stall_s, taken = self.checkpoint(), []
        while self.keep.busy or len(taken) < steps:
            taken.append((self.keep.busy, self.step()))
        self.end()
        while_written = [seconds for busy, seconds in taken if busy]
        return {
            "stall_s": stall_s,
            "written_s": self.keep.write_s - written_s,
            "step_s": sum(while_written) / max(len(while_written), 1),
            "steps": len(while_written),
        }

    def waiting(self) -> dict[str, float]:
        began = time.perf_counter()
        copied_s = self.checkpoint()
        self.end()
        stall_s = time.perf_counter() - began
        return {"stall_s": stall_s, "without_copy_s": stall_s - copied_s}


def shares(rows: dict[str, list[dict[str, float]]], every: int) -> dict[str, dict[str, float]]:
    """Of the time, round by round, percent."""
    found: dict[str, list[float]] = {}
    for none, beside, waiting in zip(rows["none"], rows["beside"], rows["waiting"], strict=True):
        train_s = every * none["step_s"]
        slower_s = max(beside["step_s"] - none["step_s"], 0.0) * beside["steps"]
        for name, cost_s in (
            ("beside, the stall", beside["stall_s"]),
            ("beside, the stall and slower steps", beside["stall_s"] + slower_s),
            ("waiting", waiting["stall_s"]),
            ("waiting, without the copy", waiting["without_copy_s"]),
        ):
            found.setdefault(f"{name}, percent of the time", []).append(100 * cost_s / (cost_s + train_s))
    return {name: spread(values) for name, values in found.items()}


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import ray

    make_folder(folder, "attempt")
    keeper = ray.remote(num_cpus=0)(Keeper).remote(str(folder), "attempt", 1)
    width, words = (64, 1000) if arguments.smoke else (WIDTH, WORDS)
    training = Training(arguments.layers, width, words, arguments.batch, keeper)
    for _ in range(2):
        training.step()  # AdamW's moments, and the allocator's
    first = training.waiting()  # the first copy asks the system for its memory
    num_parameters = sum(each.numel() for each in training.model.parameters())
    before = psutil.Process().memory_info().rss
    variants = {
        "none": lambda: training.none(arguments.steps),
        "beside": lambda: training.beside(arguments.steps),
        "waiting": training.waiting,
    }
    rows = interleave(variants, arguments.rounds)
    figures = {
        **shares(rows, arguments.every),
        "stall, beside / waiting": ratio(rows, "stall_s", "beside", "waiting"),
        "stall, beside, s": spread([row["stall_s"] for row in rows["beside"]]),
        "stall, waiting, s": spread([row["stall_s"] for row in rows["waiting"]]),
        "step, s": spread([row["step_s"] for row in rows["none"]]),
        "step while one is written, s": spread([row["step_s"] for row in rows["beside"]]),
    }
    return {
        "rows": rows,
        "figures": figures,
        "first": first,
        "parameters": num_parameters,
        "grown_bytes": psutil.Process().memory_info().rss - before,
        "device": str(training.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="steps from one checkpoint to the next")
    parser.add_argument("--steps", type=int, default=3, help="of a round, at least")
    parser.add_argument("--smoke", action="store_true", help="one round of a small model, nothing written")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds, arguments.layers = 1, 2
    prepare_environment()
    cluster = local.start(())
    folder = Path(tempfile.mkdtemp(prefix="raytrain-checkpointing-"))
    try:
        found = measured(arguments, folder)
    finally:
        cluster.close()
        shutil.rmtree(folder)
    for name, values in found["figures"].items():
        print(name, {key: round(value, 3) for key, value in values.items()})
    print({name: found[name] for name in ("first", "parameters", "grown_bytes", "device")})
    if not arguments.smoke:
        about = {name: value for name, value in vars(arguments).items() if name != "smoke"}
        rest = {name: found[name] for name in ("first", "parameters", "grown_bytes", "device")}
        print(write("checkpointing", found["rows"], found["figures"], **about, **rest))


if __name__ == "__main__":
    main()
