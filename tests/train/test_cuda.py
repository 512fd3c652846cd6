"""The same arithmetic on a GPU, where there is one: `python -m pytest tests/train/test_cuda.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ranks import Case, changed, train_rank

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
FIFTY_STEPS = Case(
    100, 4, 1, epochs=2, training={"optimizer": {"name": "adamw", "lr": 0.01}, "schedule": {"name": "cosine"}}
)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.05)])
def test_fifty_steps_on_a_gpu_are_those_of_the_cpu(precision, bound):
    """`bound` is the largest difference of a weight after 50 steps of AdamW at 0.01, from fp32 on the CPU."""
    expected = train_rank(FIFTY_STEPS, 0)
    outcome = train_rank(changed(replace(FIFTY_STEPS, device="cuda"), precision=precision), 0)
    assert outcome.error is None, outcome.error
    assert outcome.updates + outcome.counts["skipped_steps"] == 50
    away = max((outcome.model[name] - value).abs().max().item() for name, value in expected.model.items())
    assert away < bound
    assert (away == 0) is False or precision == "fp32", "the precision makes a difference"
    assert outcome.history[-1]["loss"] == pytest.approx(expected.history[-1]["loss"], abs=bound)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_that_goes_on_on_a_gpu_has_its_random_numbers_again(tmp_path, precision):
    """Dropout draws from the GPU's own generator."""
    case = changed(replace(FIFTY_STEPS, device="cuda", options={"dropout": 0.5}), precision=precision)
    whole = train_rank(replace(case, folder=str(tmp_path / "whole")), 0)
    parts = replace(case, folder=str(tmp_path / "parts"))
    assert train_rank(replace(parts, stop_after=17), 0).stopped
    torch.manual_seed(99)  # a new process has drawn other numbers
    resumed = train_rank(parts, 0)
    for name, value in whole.model.items():
        assert torch.allclose(resumed.model[name], value, atol=1e-6), name


def test_losses_are_looked_at_late_but_before_a_checkpoint(tmp_path):
    case = replace(FIFTY_STEPS, device="cuda", model="not_a_number_above", options={"limit": 50.0}, loud={5: 1e4})
    outcome = train_rank(replace(case, folder=str(tmp_path)), 0)
    (ids,) = [ids for _, ids, _, _ in outcome.batches if 5 in ids][:1]
    assert outcome.error.startswith("LossError")
    assert f"of samples {', '.join(map(str, ids))};" in outcome.error
    assert not list(tmp_path.glob("*/checkpoint_*"))
