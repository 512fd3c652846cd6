"""What is learnt: loss and figures of every kind of task, against torch's and torchmetrics' own."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from ranks import Case, train_rank

from raytrain.config.training import Kind, Training
from raytrain.data.samples.fields import Field, Schema
from raytrain.errors import ConfigError, TrainingError
from raytrain.run.checks import check_fields, outputs_of
from raytrain.train.learning.metrics import log_name, watches
from raytrain.train.learning.objectives import DEFAULT_LOSSES, Objective

CPU = torch.device("cpu")
KINDS = Kind.__args__


def objective(kind, **training):
    task = {"kind": kind, **training.pop("task", {})}
    return Objective(Training(epochs=1, task=task, **training), CPU)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Alone:
    rank, world_size, device = 0, 1, CPU

    def sum_over_ranks(self, *values):
        return list(values)


def figures(of, batches, num_classes, **training):
    seen = watches(Training(epochs=1, task=of.task, **training), num_classes, CPU)
    for batch, output in batches:
        for each in seen:
            each.update(*of.answers(output, batch))
    return {name: value for each in seen for name, value in each.result(Alone()).items()}


def test_every_kind_has_a_loss():
    assert {*DEFAULT_LOSSES} == {*KINDS}


def test_classes_are_learnt_with_smoothing_in_training_alone():
    of, logits, label = objective("classification", label_smoothing=0.2), random(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    batch = {"image": random(6, 3), "label": label.to(torch.uint8)}
    assert torch.allclose(of.loss(logits, batch), F.cross_entropy(logits, label, label_smoothing=0.2))
    assert torch.allclose(of.validation_loss(logits, batch), F.cross_entropy(logits, label))
    shares = F.one_hot(label, 4) * 0.7 + 0.3 / 4
    assert torch.allclose(of.validation_loss(logits, {"label": shares}), F.cross_entropy(logits, shares))


def test_several_labels_of_a_sample():
    of, logits, labels = objective("multi_label"), random(6, 4), (random(6, 4, seed=1) > 0).to(torch.uint8)
    batch = {"label": labels}
    assert torch.allclose(of.loss(logits, batch), F.binary_cross_entropy_with_logits(logits, labels.float()))
    theirs = torchmetrics.classification.MultilabelF1Score(4)(logits, labels.long())
    assert figures(of, [({"label": labels[:5]}, logits[:5]), ({"label": labels[5:]}, logits[5:])], 4) == {
        "f1_score": pytest.approx(float(theirs))
    }


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_a_number_of_a_sample(shape):
    of, output, target = objective("regression"), random(*shape), random(6, seed=1).double()
    batch = {"label": target}
    flat = output.reshape(6)
    assert torch.allclose(of.loss(output, batch), F.mse_loss(flat, target.float()))
    assert figures(of, [(batch, output)], 1) == {
        "mean_absolute_error": pytest.approx(float((flat - target).abs().mean()), rel=1e-6)
    }
    l1 = objective("regression", loss="L1Loss")
    assert torch.allclose(l1.loss(output, batch), F.l1_loss(flat, target.float()))
    own = objective("regression", loss={"name": "torch.nn.functional:huber_loss", "options": {"delta": 0.5}})
    assert torch.allclose(own.loss(output, batch), F.huber_loss(flat, target.float(), delta=0.5))


def test_pixels_count_alike_within_a_sample_and_samples_among_each_other():
    """So that the loss of two ranks with a sample each is that of one with both, whatever each ignores."""
    of, logits = objective("segmentation", task={"target": "mask", "ignore": 255}), random(2, 3, 4, 4)
    mask = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    mask[0, :3] = 255
    batch = {"mask": mask.to(torch.uint8)}
    each = [F.cross_entropy(logits[i : i + 1], mask[i : i + 1], ignore_index=255) for i in range(2)]
    assert torch.allclose(of.loss(logits, batch), (each[0] + each[1]) / 2)
    alone = [of.loss(logits[i : i + 1], {"mask": mask[i : i + 1]}) for i in range(2)]
    assert torch.allclose(of.loss(logits, batch), (alone[0] + alone[1]) / 2)
    valid, classes = mask != 255, logits.movedim(1, -1)
    theirs = torchmetrics.classification.MulticlassJaccardIndex(3)(classes[valid], mask[valid])
    assert figures(of, [(batch, logits)], 3) == {
        "accuracy": pytest.approx(float((classes.argmax(-1)[valid] == mask[valid]).float().mean())),
        "jaccard_index": pytest.approx(float(theirs)),
    }


def test_tokens_that_fill_up_do_not_count():
    of = objective("token_classification", task={"input": "tokens", "target": "tag"})
    logits, tags = random(2, 5, 3), torch.tensor([[0, 1, 2, 1, 0], [2, 1, 0, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    batch = {"tokens": tags, "tokens_mask": mask, "tag": tags}
    each = [F.cross_entropy(logits[0], tags[0]), F.cross_entropy(logits[1, :2], tags[1, :2])]
    assert torch.allclose(of.loss(logits, batch), (each[0] + each[1]) / 2)
    assert figures(of, [(batch, logits)], 3)["accuracy"] == pytest.approx(
        float((logits.argmax(-1)[mask] == tags[mask]).float().mean())
    )
    other = {**batch, "tag_mask": mask.flip(1)}
    assert not torch.allclose(of.loss(logits, other), of.loss(logits, batch)), "the target's own mask comes first"


class Masked(torch.nn.Module):
    def forward(self, tokens, mask):
        return (tokens * mask).sum(1, keepdim=True).expand(-1, 2).float()


class Plain(torch.nn.Module):
    def forward(self, tokens):
        return tokens.sum(1, keepdim=True).expand(-1, 2).float()


def test_a_model_that_wants_the_mask_gets_it():
    tokens, mask = torch.tensor([[1, 2, 9], [3, 4, 5]]), torch.tensor([[True, True, False], [True] * 3])
    batch = {"text": tokens, "text_mask": mask, "label": torch.tensor([0, 1])}
    of = {"input": "text"}
    assert objective("sequence_classification", task=of).outputs(Masked(), batch)[:, 0].tolist() == [3, 12]
    assert objective("sequence_classification", task=of).outputs(Plain(), batch)[:, 0].tolist() == [12, 12]
    compiled = torch.compile(Masked(), backend="eager")
    assert objective("sequence_classification", task=of).outputs(compiled, batch)[:, 0].tolist() == [3, 12]


@pytest.mark.parametrize(
    ("kind", "output", "target", "message"),
    [
        ("classification", random(4, 3, 2), torch.zeros(4), r"float32\(4, 3, 2\), and classification wants"),
        ("multi_label", random(4, 3), torch.zeros(4, 2), r"output is float32\(4, 3\), and `label` is float32\(4, 2\)"),
        ("segmentation", random(4, 3, 8, 8), torch.zeros(4, 9, 8), r"and the mask `label` float32\(4, 9, 8\)"),
        ("token_classification", random(4, 3, 8), torch.zeros(4, 9), r"`label` is float32\(4, 9\)"),
        ("regression", random(4), torch.zeros(4, 1), r"output is float32\(4,\), and `label` is float32\(4, 1\)"),
        ("regression", random(4, 1), torch.zeros(4, 3), r"output is float32\(4, 1\), and `label` is float32\(4, 3\)"),
        ("regression", "text", torch.zeros(4), "the model returns str, and regression wants a tensor"),
        ("regression", random(4, 1), ["a"], "wants numbers of field `label`, which is list"),
    ],
)
def test_an_output_that_is_another_tasks_is_one_line(kind, output, target, message):
    with pytest.raises(TrainingError, match=message):
        objective(kind).outputs(lambda image: output, {"image": random(4, 3), "label": target})


def test_targets_that_were_filled_up_are_refused_where_nothing_can_be_left_out():
    batch = {"image": random(4, 3), "label": torch.zeros(4, 2), "label_mask": torch.ones(4, 2, dtype=torch.bool)}
    with pytest.raises(TrainingError, match="multi_label wants targets of one shape; `label` was filled up"):
        objective("multi_label").outputs(lambda image: random(4, 2), batch)


def mean_of_all(output, target):
    return F.cross_entropy(output, target)


def test_a_mean_over_everything_is_refused_where_something_does_not_count():
    of = objective("segmentation", loss="test_objectives:mean_of_all", task={"ignore": 2})
    mask = torch.zeros(2, 4, 4, dtype=torch.long)
    assert torch.allclose(of.loss(random(2, 3, 4, 4), {"label": mask}), F.cross_entropy(random(2, 3, 4, 4), mask))
    mask[0, 0, 0] = 2
    with pytest.raises(TrainingError, match="some of `label` does not count; it must be one for each element"):
        of.loss(random(2, 3, 4, 4), {"label": mask})


def no_tensor(output, target):
    return 1.0


def test_metrics_see_probabilities_however_small_the_outputs_are():
    """torchmetrics would take 0.3 for a probability, which is 0.57 of one."""
    of, labels = objective("multi_label"), torch.tensor([[1, 0]])
    assert figures(of, [({"label": labels}, torch.tensor([[0.3, -9.0]]))], 2) == {"f1_score": pytest.approx(0.5)}
    assert figures(of, [({"label": labels}, torch.tensor([[0.3, 0.0]]))], 2) == {"f1_score": pytest.approx(0.5)}


def three(output, target):
    return output.new_zeros(3)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            "CosineEmbeddingLoss",
            r"training.loss does not fit: the model's output is float32\(4, 3\), the target",
        ),
        ("test_objectives:no_tensor", "training.loss gave float; it must be a tensor"),
        ("test_objectives:three", r"training.loss gave float32\(3,\) for 4 samples"),
    ],
)
def test_a_loss_that_does_not_fit_is_one_line(loss, message):
    with pytest.raises(TrainingError, match=message) as caught:
        objective("classification", loss=loss).loss(random(4, 3), {"label": torch.tensor([0, 1, 2, 0])})
    assert "\n" not in str(caught.value)


def test_metrics_that_do_not_fit_are_one_line():
    of, batch = objective("classification"), {"label": torch.tensor([0, 1])}
    with pytest.raises(TrainingError, match="training.metrics: R2Score does not fit"):
        figures(of, [(batch, random(2, 3))], 3, metrics=["R2Score"])
    none = {"name": "F1Score", "options": {"average": None}}
    with pytest.raises(TrainingError, match="F1Score gives no single number"):
        figures(of, [(batch, random(2, 3))], 3, metrics=[none])
    with pytest.raises(TrainingError, match="R2Score cannot be computed"):
        figures(objective("regression"), [({"label": torch.zeros(1)}, random(1))], 1, metrics=["R2Score"])
    with pytest.raises(ConfigError, match="'builtins:dict' must be one of torchmetrics, not dict"):
        figures(of, [], 3, metrics=["builtins:dict"])


@pytest.mark.parametrize(
    ("name", "logged"),
    [("MulticlassF1Score", "f1_score"), ("AUROC", "auroc"), ("a.b:R2Score", "r2_score"), ("CohenKappa", "cohen_kappa")],
)
def test_what_metrics_are_logged_as(name, logged):
    assert log_name(name) == logged


@pytest.mark.ranks
@pytest.mark.parametrize("num_validation", [1, 5, 12])
def test_figures_are_over_all_samples_whoever_had_them(ranks, num_validation):
    """Batches of 4 for two ranks: with one sample the other rank has none."""
    training = {"metrics": ["F1Score", "MulticlassAUROC"]}
    case = Case(8, 4, 2, epochs=1, num_validation=num_validation, model="linear", training=training)
    for outcome in ranks.run(case):
        assert outcome.error is None, outcome.error
        images, labels = case.samples("validation")
        logits = F.linear(images.flatten(1), outcome.model["1.weight"], outcome.model["1.bias"])
        [entry] = outcome.history
        assert entry["validation_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert entry["validation_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        f1 = torchmetrics.classification.MulticlassF1Score(3, average="micro")(logits, labels)
        assert entry["validation_f1_score"] == pytest.approx(float(f1), rel=1e-5)
        auroc = torchmetrics.classification.MulticlassAUROC(3)(logits, labels)
        assert entry["validation_auroc"] == pytest.approx(float(auroc), rel=1e-5)


def test_a_loss_that_is_no_number_names_its_samples_whatever_is_learnt():
    case = Case(8, 4, epochs=1, training={"loss": "NLLLoss"}, loud={3: float("nan")})
    outcome = train_rank(case, 0)
    assert re.search(r"LossError: .*step \d.*\b3\b", outcome.error), outcome.error


LABEL = Field("uint8", ())


@pytest.mark.parametrize(
    ("kind", "target", "outputs"),
    [
        ("classification", Field("int64", (), classes=("a", "b")), 2),
        ("multi_label", Field("uint8", (7,)), 7),
        ("regression", Field("float32", ()), 1),
        ("regression", Field("float64", (3,)), 3),
        ("segmentation", Field("uint8", (None, None), "mask"), None),
        ("token_classification", Field("int64", (None,)), None),
        ("sequence_classification", LABEL, None),
    ],
)
def test_fields_that_fit_and_what_a_model_is_told(kind, target, outputs):
    task = Training(epochs=1, task={"kind": kind, "input": "x"}).task
    schema = Schema({"x": Field("uint8", (8, 8, 3)), "label": target})
    check_fields(schema, task)
    assert outputs_of(task, schema) == outputs


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("classification", Field("float32", ()), "classification wants a whole number a sample, and field `label` is"),
        ("sequence_classification", Field("int64", (3,)), "wants a whole number a sample"),
        ("multi_label", Field("text", ()), "wants numbers along 1 axis, and field `label` is text"),
        ("multi_label", LABEL, "wants numbers along 1 axis"),
        ("regression", Field("text", ()), "regression wants numbers"),
        ("segmentation", Field("uint8", (8, 8, 3), "mask"), "whole numbers along 2 axes"),
        ("token_classification", Field("float32", (None,)), "whole numbers along 1 axis"),
        ("segmentation", Field("bytes", (), "mask"), "field `label` arrives as encoded bytes"),
    ],
)
def test_fields_that_are_another_tasks_are_one_line(kind, target, message):
    task = Training(epochs=1, task={"kind": kind, "input": "x"}).task
    with pytest.raises(ConfigError, match=message):
        check_fields(Schema({"x": Field("uint8", (8, 8, 3)), "label": target}), task)
