"""What is learnt of a batch: how the model is called, what the loss is, and what counts as right.

The loss of a batch is the mean over its samples; of a sample with many elements (pixels, tokens) the mean over those
that count. So it does not depend on how samples are shared out to ranks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from raytrain.config.training import OF_CLASSES, OF_ELEMENTS, OF_TOKENS, Training
from raytrain.data.samples.collate import padded_names
from raytrain.errors import ConfigError, TrainingError, one_line
from raytrain.train.learning.named import found, made, parameters_of

LOSS = "training.loss"
IGNORED = -100  # what torch's losses ignore unless they are told otherwise
DEFAULT_LOSSES = {
    "classification": "CrossEntropyLoss",
    "sequence_classification": "CrossEntropyLoss",
    "segmentation": "CrossEntropyLoss",
    "token_classification": "CrossEntropyLoss",
    "multi_label": "BCEWithLogitsLoss",
    "regression": "MSELoss",
}


def check_loss(training: Training) -> None:
    """
    Raises:
        ConfigError: there is none of this name, or it does not take its options.
    """
    _build_loss(training, training.label_smoothing)


def _build_loss(training: Training, smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
    """A loss, of each element where it can."""
    kind, named = training.task.kind, training.loss
    name = named.name if named else DEFAULT_LOSSES[kind]
    make = found(name, LOSS, ("torch.nn", nn, nn.modules.loss._Loss))
    takes, options = parameters_of(make), dict(named.options) if named else {}
    if options.pop("reduction", "mean") != "mean":
        raise ConfigError(f"{LOSS}: the loss is the mean over the samples; leave `reduction` out")
    if smoothing and "label_smoothing" not in takes:
        raise ConfigError(f"training.label_smoothing: {name} has none")
    own = {"reduction": "none", "label_smoothing": smoothing, "ignore_index": training.task.ignore}
    for option, value in own.items():
        if option in takes and value is not None:
            options.setdefault(option, value)
    for option in {"weight", "pos_weight"} & options.keys():
        options[option] = made(torch.tensor, f"{LOSS}.options.{option}", name, options[option], dtype=torch.float32)
    if not inspect.isclass(make):
        return partial(make, **options)
    return made(make, LOSS, name, **options)  # type: ignore[no-any-return]


def _ignored_by(loss: Any) -> int | None:
    """What a loss itself leaves out of a target; None where it knows of nothing such."""
    found_ = loss.keywords if isinstance(loss, partial) else vars(loss)
    return found_.get("ignore_index")  # type: ignore[no-any-return]


AXES = {  # of an output
    "classification": "(samples, classes)",
    "sequence_classification": "(samples, classes)",
    "multi_label": "(samples, labels)",
    "segmentation": "(samples, classes, height, width)",
    "token_classification": "(samples, tokens, classes)",
}


class Objective:
    """Of one training.

    Attributes:
        task: kind, and names of fields.
    """

    def __init__(self, training: Training, device: torch.device, *, channels_last: bool = False):
        self.task, self._channels_last = training.task, channels_last
        self._losses = [_build_loss(training, smoothing) for smoothing in (training.label_smoothing, 0.0)]
        for each in self._losses:
            if isinstance(each, nn.Module):
                each.to(device)
        self._takes_mask: bool | None = None

    def outputs(self, model: Callable[..., torch.Tensor], batch: Mapping[str, Any]) -> torch.Tensor:
        """The model's, of a batch; one of tokens that takes two arguments gets the mask of what was filled up too.

        Raises:
            TrainingError: they do not fit the task.
        """
        given = batch[self.task.input]
        if self._channels_last and given.ndim == 4:
            given = given.contiguous(memory_format=torch.channels_last)
        mask = batch.get(padded_names(self.task.input)[0]) if self.task.kind in OF_TOKENS else None
        if self._takes_mask is None:
            inner = getattr(model, "_orig_mod", model)
            inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner
            takes = parameters_of(getattr(inner, "forward", inner))
            places = [
                each for each in takes.values() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
            ]
            self._takes_mask = mask is not None and len(places) > 1
        output = model(given, mask) if self._takes_mask else model(given)
        self._check(output, batch[self.task.target])
        if self.task.kind not in OF_ELEMENTS and padded_names(self.task.target)[0] in batch:
            raise TrainingError(f"{self.task.kind} wants targets of one shape; `{self.task.target}` was filled up")
        return output

    def loss(self, output: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """The mean over the batch's samples, a scalar.

        Raises:
            TrainingError: the loss does not fit the output.
        """
        return self._mean(self._losses[0], output, batch)

    def validation_loss(self, output: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """The same without `training.label_smoothing`."""
        return self._mean(self._losses[1], output, batch)

    def _mean(self, loss: Any, output: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        target, valid = self._target(output, batch)
        output = output.movedim(-1, 1) if self.task.kind == "token_classification" else self._as_target(output, target)
        try:
            found = loss(output, target)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise TrainingError(
                f"{LOSS} does not fit: the model's output is {_told(output)}, the target `{self.task.target}` is "
                f"{_told(target)}: {one_line(error, 160)}"
            ) from None
        if not isinstance(found, torch.Tensor):
            raise TrainingError(f"{LOSS} gave {type(found).__name__}; it must be a tensor: one a sample, or a mean")
        if valid is not None and found.ndim < 2 and not bool(valid.all()):
            raise TrainingError(
                f"{LOSS} gave {_told(found)}, and some of `{self.task.target}` does not count; it must be one for each "
                "element (have it take `reduction`)"
            )
        if found.ndim == 0:
            return found
        if len(found) != len(target):
            raise TrainingError(
                f"{LOSS} gave {_told(found)} for {len(target)} samples; it must be one a sample, or a mean"
            )
        if found.ndim == 1:
            return found.mean()
        if valid is None:
            return found.flatten(1).mean(1).mean()
        share = valid.to(found.dtype)
        each = (found * share).flatten(1).sum(1) / share.flatten(1).sum(1).clamp(min=1)
        return each.mean()

    def _target(self, output: torch.Tensor, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """And where it counts, of targets with many elements; None for everywhere."""
        target = batch[self.task.target]
        if self.task.kind in ("multi_label", "regression"):
            return target.to(output.dtype if output.dtype == torch.float32 else torch.float32), None
        if target.is_floating_point():
            return target, None  # shares of classes, where labels are mixed
        target = target.long()
        if self.task.kind not in OF_ELEMENTS:
            return target, None
        known = _ignored_by(self._losses[0])
        ignored = known if known is not None else IGNORED if self.task.ignore is None else self.task.ignore
        valid = target != ignored
        others = (self.task.input,) if self.task.kind == "token_classification" else ()
        for name in (self.task.target, *others):
            mask = padded_names(name)[0]
            if mask in batch:
                valid = valid & batch[mask]
                break
        return target.masked_fill(~valid, 0 if known is None else ignored), valid

    def answers(self, output: torch.Tensor, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and target as metrics take them: probabilities of classes and labels, classes last, and of elements
        only those that count.

        Shapes: classification (samples, classes) and (samples,); with many elements (elements, classes) and
        (elements,); multi_label (samples, labels) both; regression as the target.
        """
        target, valid = self._target(output, batch)
        output = output.float()
        if self.task.kind == "segmentation":
            output = output.movedim(1, -1)
        output = self._probabilities(output)
        if valid is not None:
            return output[valid], target[valid]
        if self.task.kind == "multi_label":
            return output, target.long()
        mixed = target.is_floating_point() and self.task.kind in OF_CLASSES
        return self._as_target(output, target), target.argmax(1) if mixed else target

    def _probabilities(self, output: torch.Tensor) -> torch.Tensor:
        """torchmetrics makes them of what lies outside 0 and 1 alone, batch by batch."""
        if self.task.kind == "multi_label":
            return output if isinstance(self._losses[0], nn.BCELoss) else output.sigmoid()
        if self.task.kind in OF_CLASSES:
            return output.exp() if isinstance(self._losses[0], nn.NLLLoss) else output.softmax(-1)
        return output

    def _check(self, output: Any, target: Any) -> None:
        kind = self.task.kind
        if not isinstance(output, torch.Tensor):
            raise TrainingError(
                f"the model returns {type(output).__name__}, and {kind} wants a tensor; bring a loop of your own "
                "(training.loop) for other outputs"
            )
        if not isinstance(target, torch.Tensor):
            raise TrainingError(f"{kind} wants numbers of field `{self.task.target}`, which is {type(target).__name__}")
        wanted = AXES.get(kind, "")
        if wanted and output.ndim != wanted.count(",") + 1:
            raise TrainingError(f"the model's output is {_told(output)}, and {kind} wants {wanted}")
        if kind == "segmentation" and output.shape[-2:] != target.shape[-2:]:
            raise TrainingError(
                f"the model's output is {_told(output)}, and the mask `{self.task.target}` {_told(target)}"
            )
        if kind == "token_classification":
            fits = output.shape[:2] == target.shape[:2]
        else:
            fits = kind in OF_CLASSES or self._as_target(output, target).shape == target.shape
        if not fits:
            raise TrainingError(f"the model's output is {_told(output)}, and `{self.task.target}` is {_told(target)}")

    def _as_target(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of one number a sample, without an axis of its own."""
        alone = self.task.kind == "regression" and output.ndim == target.ndim + 1
        return output.squeeze(-1) if alone else output


def _told(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"
