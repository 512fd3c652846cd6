"""Small modules, and models on them, that back ends are compared with; a job names functions as `small_models:…`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain.config.inference import PredictingModel

VIT = {
    "name": "vit_tiny_patch16_224",
    "options": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 4,
    },
}
RESNET = {"name": "resnet18", "options": {"channels": [8, 16, 24, 32], "num_classes": 4}}
ENCODER = {
    "name": "small_models:encoder",
    "options": {"num_classes": 4},
    "inputs": {"tokens": "text", "mask": "mask"},
}
SECTIONS: dict[str, dict[str, Any]] = {"vit": VIT, "resnet": RESNET, "encoder": ENCODER}
WORDS = 64


class Encoder(torch.nn.Module):
    """Shaped like BERT, two layers of it; returns a dictionary as Hugging Face's models do."""

    def __init__(self, num_classes: int, width: int = 32, heads: int = 2, layers: int = 2):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, width)
        self.places = torch.nn.Embedding(32, width)
        layer = torch.nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, num_classes)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """tokens: (samples, length), int64; mask: as well, False where there is none."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        seen = self.layers(self.words(tokens) + self.places(places), src_key_padding_mask=~mask)
        kept = mask.unsqueeze(-1).to(seen.dtype)
        return {"hidden": seen, "logits": self.head((seen * kept).sum(1) / kept.sum(1))}


def encoder(num_classes: int = 3) -> torch.nn.Module:
    return Encoder(num_classes)


class Sums(torch.nn.Module):
    """Its output is easily foretold: the sum of a sample, twice, times `scale`."""

    def __init__(self, how: str = "tensor"):
        super().__init__()
        self.how = how
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> Any:
        total = x.flatten(1).sum(1, keepdim=True).repeat(1, 2) * self.scale
        other = torch.zeros_like(total)
        ways = {"tensor": total, "first": (total, other), "logits": {"other": other, "logits": total}, "text": "none"}
        return ways[self.how]


def sums(how: str = "tensor") -> torch.nn.Module:
    return Sums(how)


def pooled() -> torch.nn.Module:
    """Takes images of any size."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def section(name: str, **changes: Any) -> PredictingModel:
    return PredictingModel(**{**SECTIONS[name], **changes})


def samples(name: str, num: int, seed: int = 0, length: int = 12) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Inputs and labels of four classes that a model can learn to tell apart: a pattern of 8 x 8 pixels among noise,
    or which words are frequent."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, num)
    if name == "encoder":
        lengths = random.integers(length // 2, length + 1, num)
        mask = np.arange(length) < lengths[:, None]
        own = random.random((num, length)) < 0.7
        tokens = np.where(own, labels[:, None] * 16 + random.integers(0, 16, (num, length)), 0)
        tokens = np.where(own, tokens, random.integers(0, WORDS, (num, length)))
        return (np.where(mask, tokens, 0), mask), labels
    images = random.normal(size=(num, 3, 32, 32)).astype(np.float32)
    patterns = np.random.default_rng(7).normal(size=(4, 3, 8, 8)).astype(np.float32)
    strength = random.uniform(0.2, 1.0, (num, 1, 1, 1)).astype(np.float32)  # some are hard to tell
    images += strength * np.tile(patterns, (1, 1, 4, 4))[labels]
    return (images,), labels


@torch.enable_grad()
def train(module: torch.nn.Module, name: str, steps: int = 25) -> None:
    """For a moment, on new samples in every step."""
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    module.train().requires_grad_(True)
    for step in range(steps):
        inputs, labels = samples(name, 32, seed=100 + step)
        returned = module(*map(torch.from_numpy, inputs))
        logits = returned["logits"] if isinstance(returned, dict) else returned
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        optimizer.step()
    module.eval()
