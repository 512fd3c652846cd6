"""How a model learns: optimizers, schedules, averages, an early end, weights to begin with. Against torch's own."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import timm.optim
import timm.scheduler
import torch
import torch.nn.functional as F
import torchmetrics  # noqa: F401 - on a new machine it looks for fonts when it is imported
import yaml
from conftest import ROOT
from ranks import Case, _updates, linear, mlp, train_rank, with_batch_norm

from raytrain.config.learning import EarlyStopping, Model, Optimizer, Schedule, Weights
from raytrain.config.training import Training
from raytrain.errors import CheckpointError, ConfigError
from raytrain.run.checks import check_learning, with_weights
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.learning.averaged import WEIGHTS, Averaged
from raytrain.train.learning.objectives import DEFAULT_LOSSES
from raytrain.train.learning.optimizers import build_optimizer, build_scheduler
from raytrain.train.learning.stopping import Patience
from raytrain.train.learning.weights import freeze, load_weights

SGD = {"name": "sgd", "lr": 0.1}


def by_parameter(model, optimizer):
    """Learning rate and decay of each, by name."""
    names = {id(each): name for name, each in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_groups_have_values_of_their_own():
    model = mlp()
    groups = [{"match": "4.*", "lr": 0.5}, {"match": "1.weight", "weight_decay": 0.25}]
    optimizer = build_optimizer(model, Optimizer(lr=0.1, weight_decay=0.01, groups=groups))
    assert by_parameter(model, optimizer) == {
        "1.weight": (0.1, 0.25),
        "1.bias": (0.1, 0.0),
        "4.weight": (0.5, 0.01),
        "4.bias": (0.5, 0.0),
    }


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("RMSprop", {"alpha": 0.9}, lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9)),
        ("sgd", {"nesterov": True}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)),
        ("torch.optim:Adam", {}, lambda p: torch.optim.Adam(p, lr=0.05)),
        ("lion", {}, lambda p: timm.optim.Lion(p, lr=0.05)),
    ],
)
def test_optimizers_by_name_do_what_theirs_do(name, options, theirs):
    ours, other, image = linear(), linear(), torch.randn(5, 2, 3, 3)
    other.load_state_dict(ours.state_dict())
    steps = build_optimizer(ours, Optimizer(name=name, lr=0.05, options=options)), theirs(other.parameters())
    for _ in range(3):
        for model, optimizer in zip((ours, other), steps, strict=True):
            optimizer.zero_grad()
            model(image).square().mean().backward()
            optimizer.step()
    for mine, expected in zip(ours.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, expected, atol=1e-7)


def rates(schedule, optimizer, updates):
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"name": "OneCycleLR", "options": {"max_lr": 1.0}}, (torch.optim.lr_scheduler.OneCycleLR, (1.0, 12))),
        ({"name": "CosineAnnealingLR"}, (torch.optim.lr_scheduler.CosineAnnealingLR, (12,))),
        ({"name": "StepLR", "options": {"step_size": 5}}, (torch.optim.lr_scheduler.StepLR, (5,))),
        (
            {"name": "torch.optim.lr_scheduler:ExponentialLR", "options": {"gamma": 0.5}},
            (torch.optim.lr_scheduler.ExponentialLR, (0.5,)),
        ),
    ],
)
def test_schedules_by_name_are_torchs_by_update(settings, theirs):
    ours, other = sgd(), sgd()
    mine = rates(build_scheduler(ours, Schedule(**settings), 12), ours, 12)
    make, args = theirs
    assert mine == pytest.approx(rates(make(other, *args), other, 12)) and len({*mine}) > 1


def test_a_schedule_of_timms_goes_by_updates_and_goes_on():
    ours, other = sgd(), sgd()
    settings = Schedule(name="PolyLRScheduler", options={"power": 2.0, "warmup_t": 3})
    theirs = timm.scheduler.PolyLRScheduler(other, t_initial=12, power=2.0, warmup_t=3, t_in_epochs=False)
    expected = []
    for update in range(12):
        theirs.step_update(update)
        expected.append(other.param_groups[0]["lr"])
    schedule = build_scheduler(ours, settings, 12)
    first, state = rates(schedule, ours, 5), schedule.state_dict()
    again = sgd()
    later = build_scheduler(again, settings, 12)
    later.load_state_dict(state)
    assert later.get_last_lr() == pytest.approx([expected[5]])
    assert first + rates(later, again, 7) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"optimizer": {"name": "adamwx"}}, "training.optimizer: there is no 'adamwx'; did you mean 'adamw'"),
        ({"optimizer": {"name": "AdamX"}}, "training.optimizer: torch.optim has no 'AdamX'; did you mean 'Adam"),
        ({"optimizer": {"name": "LBFGS"}}, "LBFGS computes the loss again"),
        ({"schedule": {"name": "StepLr"}}, "training.schedule: .* has no 'StepLr'; did you mean 'StepLR'"),
        ({"schedule": {"name": "ReduceLROnPlateau"}}, "wants a metric"),
        ({"schedule": {"name": "cosine", "options": {"a": 1}}}, "training.schedule.options: cosine has none"),
        ({"schedule": {"name": "StepLR", "final_share": 0.1}}, "StepLR has no `warmup_share` and `final_share`"),
        ({"loss": "MSELos"}, "training.loss: torch.nn has no 'MSELos'; did you mean 'MSELoss'"),
        ({"loss": {"name": "MSELoss", "options": {"reduction": "sum"}}}, "leave `reduction` out"),
        ({"loss": {"name": "MSELoss", "options": {"a": 1}}}, "training.loss: cannot make 'MSELoss'"),
        ({"loss": {"name": "MSELoss", "options": {"weight": "abc"}}}, "training.loss.options.weight: cannot make"),
        ({"loss": "MSELoss", "label_smoothing": 0.1}, "training.label_smoothing: MSELoss has none"),
        ({"task": {"ignore": 3}}, "training.task.ignore: classification has no elements"),
        ({"metrics": ["MulticlassAccuracy"]}, "two are logged as validation_accuracy"),
        ({"metrics": ["F1Scor"]}, "training.metrics: .*has no 'F1Scor'; did you mean 'F1Score'"),
        ({"metrics": ["F1Score", "MulticlassF1Score"]}, "two are logged as validation_f1_score"),
    ],
)
def test_what_there_is_not_is_said_before_anything_starts(section, message):
    with pytest.raises(ConfigError) as caught:
        check_learning(Training(epochs=1, **section))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"lr": 1}}, "training.optimizer.options: lr is a key of training.optimizer itself"),
        ({"options": {"momentun": 1}}, "training.optimizer: cannot make 'sgd': .*momentun"),
        ({"name": "builtins:dict"}, "cannot make 'builtins:dict'|must return a torch optimizer"),
        ({"groups": [{"match": "5.*"}]}, "training.optimizer.groups: no parameter's name matches '5.*'"),
        ({"groups": [{"match": "4.*"}, {"match": "*.bias"}]}, r"'4\.\*' and '\*\.bias' both match 4.bias"),
        ({"name": "test_learning:no_optimizer"}, "must return a torch optimizer, not int"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_one_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(mlp(), Optimizer(**settings))


def no_optimizer(groups, lr):
    return 3


def steps_by_hand(case, model, optimizer):
    """All updates of a case, one at a time."""
    images, labels = case.samples()
    for epoch in _updates(case):
        for batches in epoch:
            ids = [i for each in batches for i in each]
            optimizer.zero_grad()
            F.cross_entropy(model(images[ids]), labels[ids]).backward()
            optimizer.step()
            yield


def averaged_by_hand(case, decay):
    """Weights after the first update, then decay * average + (1 - decay) * weights."""
    torch.manual_seed(case.seed)
    model, average = mlp(), None
    for _ in steps_by_hand(case, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)):
        now = {name: each.clone() for name, each in model.state_dict().items()}
        average = now if average is None else {n: decay * average[n] + (1 - decay) * now[n] for n in now}
    return average, model


def last_objects(folder):
    found = shelf.latest(folder)
    return [checkpoint.load_object(found, number) for number in range(len(shelf.read_facts(found).sha256) - 1)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_average_follows_the_updates_is_evaluated_and_goes_on(ranks, tmp_path, world_size):
    training = {"optimizer": SGD, "ema": {"decay": 0.8}, "checkpoint": {"keep": 999, "every_steps": 1}}
    case = Case(30, 4, world_size, num_validation=10, training=training, folder=str(tmp_path / "whole"))
    outcome = ranks.run(case)[0]
    assert outcome.error is None
    expected, model = averaged_by_hand(case, 0.8)
    saved = next(each for each in last_objects(tmp_path / "whole") if WEIGHTS in each)
    for name, value in expected.items():
        assert torch.allclose(saved[WEIGHTS][name], value, atol=2e-5), name
        assert not torch.allclose(saved[WEIGHTS][name], model.state_dict()[name], atol=1e-4), "it is not the last"
    images, labels = case.samples("validation")
    model.load_state_dict(expected)
    loss = F.cross_entropy(model(images), labels).item()
    assert outcome.history[-1]["validation_loss"] == pytest.approx(loss, rel=1e-4)
    path = tmp_path / "model.pt"
    checkpoint.write_model(shelf.latest(tmp_path / "whole"), path)
    assert all(torch.equal(each, saved[WEIGHTS][n]) for n, each in torch.load(path, weights_only=True).items())

    broken = replace(case, folder=str(tmp_path / "broken"))
    ranks.run(replace(broken, stop_after=3))
    ranks.run(broken)
    again = next(each for each in last_objects(tmp_path / "broken") if WEIGHTS in each)
    assert all(torch.equal(each, saved[WEIGHTS][name]) for name, each in again[WEIGHTS].items())


def test_buffers_of_an_average_are_the_models():
    seen = []
    case = Case(12, 4, model="with_batch_norm", training={"ema": {}}, loop=lambda ctx: seen.append(ctx) or loop(ctx))
    from raytrain.train.loop import train_loop as loop

    outcome = train_rank(case, 0)
    assert outcome.error is None
    average = next(each for each in seen[0]._objects if hasattr(each, "module"))
    for name, buffer in average.module.named_buffers():
        assert torch.equal(buffer, outcome.model[name]) and (buffer != 0).any(), name


def test_training_ends_when_nothing_improves(tmp_path):
    stopping = {"metric": "validation_accuracy", "patience": 2, "min_delta": 0.9}
    case = Case(12, 4, epochs=9, num_validation=6, training={"early_stopping": stopping}, folder=str(tmp_path))
    outcome = train_rank(case, 0)
    assert outcome.error is None and len(outcome.history) == 3, "one that is the best, and two more"
    assert "stopped early: validation_accuracy has not been better than" in outcome.warned[-1]
    again = train_rank(case, 0)
    assert again.error is None and again.steps == outcome.steps, "who goes on has nothing to do"
    assert "stopped early" in again.warned[-1]


def test_patience_counts_from_the_best():
    settings = EarlyStopping(metric="validation_loss", patience=2, min_delta=0.1)
    patience = Patience(settings, ["loss"])
    for epoch, value in enumerate([1.0, 0.95, 0.8, float("nan"), 0.75], start=1):
        assert patience.over is None
        patience.look({"validation_loss": value})
        if epoch == 3:
            state, patience = patience.state_dict(), Patience(settings, ["loss"])
            patience.load_state_dict(state)
    assert patience.over and "better than 0.8 since epoch 3" in patience.over
    never = Patience(settings, ["loss"])
    for _ in range(2):
        never.look({"validation_loss": float("nan")})
    assert never.over == "stopped early: validation_loss was never a number (training.early_stopping)"
    with pytest.raises(ConfigError, match="'accuracy' is not logged.*there are validation_loss"):
        Patience(EarlyStopping(metric="accuracy"), ["loss"])


def test_what_is_frozen_stays_and_the_rest_learns_as_before(ranks):
    frozen = Case(30, 4, more={"freeze": ["1.*"]}, training={"optimizer": SGD})
    outcome = ranks.run(frozen)[0]
    torch.manual_seed(frozen.seed)
    model = mlp()
    first = copy.deepcopy(model.state_dict())
    for _ in steps_by_hand(frozen, model, torch.optim.SGD(model[4].parameters(), lr=0.1, momentum=0.9)):
        pass
    for name, value in model.state_dict().items():
        assert torch.allclose(outcome.model[name], value, atol=2e-5), name
        assert torch.equal(outcome.model[name], first[name]) == name.startswith("1."), name


def test_batch_norm_of_which_all_is_frozen_keeps_its_statistics():
    model = with_batch_norm()
    freeze(model, ["1.*", "4.weight"])
    model.train()
    model(torch.randn(6, 2, 3, 3))
    assert not model[1].running_mean.any() and model[4].running_mean.any()
    with pytest.raises(ConfigError, match="model.freeze: no parameter's name matches 'x'"):
        freeze(model, ["x"])
    freeze(model, ["*"])
    with pytest.raises(ConfigError, match="no parameter is left to be trained"):
        build_optimizer(model, Optimizer())


def test_weights_of_a_file_and_what_does_not_fit(tmp_path):
    from safetensors.torch import save_file

    other = mlp()
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{n}": each for n, each in other.state_dict().items()}}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        model = mlp()
        told = load_weights(model, Weights(path=str(tmp_path / name)))
        assert told == f"4 of 4 tensors are from {tmp_path / name}"
        assert all(torch.equal(each, other.state_dict()[n]) for n, each in model.state_dict().items())
    model = torch.nn.Sequential(*mlp()[:4], torch.nn.Linear(8, 7))
    with pytest.raises(ConfigError, match="2 have another size .4.weight: 3x8 and not 7x8"):
        load_weights(model, Weights(path=str(tmp_path / "w.pt")))
    head = model[4].weight.clone()
    told = load_weights(model, Weights(path=str(tmp_path / "w.pt"), skip=["4.*"]))
    assert told.startswith("2 of 4") and told.endswith(", 2 keep their first values")
    assert torch.equal(model[4].weight, head) and torch.equal(model[1].weight, other[1].weight)
    with pytest.raises(ConfigError, match="model.weights.skip: no name matches 'x.'"):
        load_weights(model, Weights(path=str(tmp_path / "w.pt"), skip=["x*"]))
    with pytest.raises(ConfigError, match="model.weights: cannot read .*nothing.pt"):
        load_weights(model, Weights(path=str(tmp_path / "nothing.pt")))
    torch.save({"f": Case}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="would execute code"):
        load_weights(model, Weights(path=str(tmp_path / "code.pt")))


def test_ranks_are_told_the_whole_path_of_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(mlp().state_dict(), "w.pt")
    job = Case(more={"weights": "w.pt"}).job
    assert with_weights(job, False).model.weights.path == str(tmp_path / "w.pt")
    remote = Case(more={"weights": "s3://bucket/w.pt"}).job
    assert with_weights(remote, False) is remote and with_weights(Case().job, False).model.weights is None
    with pytest.raises(ConfigError, match="model.weights: there is no file .*nothing.pt"):
        with_weights(Case(more={"weights": "nothing.pt"}).job, False)
    assert with_weights(Case(more={"weights": "nothing.pt"}).job, True), "who goes on does not read it"


def test_a_run_begins_with_weights_and_says_so(tmp_path):
    other = mlp()
    torch.save(other.state_dict(), tmp_path / "w.pt")
    case = Case(8, 4, epochs=1, more={"weights": str(tmp_path / "w.pt")}, training={"optimizer": {"lr": 1e-12}})
    outcome = train_rank(case, 0)
    assert outcome.error is None and outcome.warned == [f"model.weights: 4 of 4 tensors are from {tmp_path / 'w.pt'}"]
    assert all(torch.allclose(outcome.model[n], each, atol=1e-6) for n, each in other.state_dict().items())


@pytest.mark.parametrize("more", [{"channels_last": True}, {"compile": "eager"}], ids=lambda more: next(iter(more)))
def test_another_way_to_compute_learns_the_same(more):
    case = Case(16, 4, epochs=1, num_validation=4, model="with_batch_norm", training={"optimizer": SGD})
    plain, other = train_rank(case, 0), train_rank(replace(case, more=more), 0)
    assert other.error is None and plain.model.keys() == other.model.keys()
    for name, value in plain.model.items():
        assert torch.allclose(other.model[name].float(), value.float(), atol=1e-5), name
    if "channels_last" in more:
        assert other.model["0.weight"].is_contiguous(memory_format=torch.channels_last)


class Checkpointed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.times, self.checkpoints = mlp(), 0, False
        self.inner.register_forward_pre_hook(lambda *_: setattr(self, "times", self.times + 1))

    def set_grad_checkpointing(self, enable):
        self.checkpoints = enable

    def forward(self, image):
        if self.checkpoints and self.training:
            return torch.utils.checkpoint.checkpoint(self.inner, image, use_reentrant=False)
        return self.inner(image)


def test_activations_may_be_computed_again(monkeypatch):
    import ranks

    made = []
    monkeypatch.setattr(ranks, "mlp", lambda: made.append(Checkpointed()) or made[-1])
    case = Case(8, 4, epochs=1, training={"optimizer": SGD})
    plain = train_rank(case, 0)
    again = train_rank(replace(case, more={"gradient_checkpointing": True}), 0)
    assert [each.times for each in made] == [2, 4]
    assert all(torch.allclose(again.model[name], each, atol=1e-6) for name, each in plain.model.items())
    refused = train_rank(Case(8, 4, model="linear", more={"gradient_checkpointing": True}), 0)
    assert "'ranks:linear' has no `set_grad_checkpointing`" in refused.error


def test_a_compiler_that_there_is_not():
    outcome = train_rank(Case(8, 4, more={"compile": "indcutor"}), 0)
    assert "model.compile: torch has no backend 'indcutor'; did you mean 'inductor'" in outcome.error


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR"])
def test_a_schedule_of_a_longer_run_goes_on_to_its_end(tmp_path, name):
    options = {"max_lr": 0.1} if name == "OneCycleLR" else {}
    case = Case(12, 4, epochs=1, training={"schedule": {"name": name, "options": options}}, folder=str(tmp_path))
    assert train_rank(case, 0).error is None
    longer = train_rank(replace(case, epochs=3), 0)
    assert longer.error is None and longer.updates == 9
    if name == "OneCycleLR":
        optimizer = sgd()
        expected = rates(torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 9), optimizer, 9)
        assert longer.learning_rates[1:] == pytest.approx(expected[4:])


def test_a_fused_step_that_overflowed_is_none():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    average = Averaged(model, optimizer, 0.5)
    model(torch.ones(1, 2, 3, 3)).sum().backward()
    optimizer.found_inf = torch.tensor(1.0)  # as a GradScaler leaves it there for the time of the step
    optimizer.step()
    assert average.state_dict()["updates"] == 0
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert average.state_dict()["updates"] == 1


def test_switches_are_put_back():
    seen, case = [], Case(8, 4, epochs=1, training={"backends": {"deterministic": True}})
    import ranks

    before, ranks.mlp = ranks.mlp, lambda: seen.append(torch.are_deterministic_algorithms_enabled()) or before()
    try:
        assert train_rank(case, 0).error is None
    finally:
        ranks.mlp = before
    assert seen == [True] and not torch.are_deterministic_algorithms_enabled()


def test_what_the_page_on_learning_says_is_so():
    """Its examples are checked as a run would, and its table has every kind of task with its loss."""
    page = (ROOT / "docs" / "learning.md").read_text()
    examples = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)```", page, re.M | re.S)]
    assert len(examples) == 2
    for example in examples:
        check_learning(Training(**example["training"]))
    Model(**examples[1]["model"])
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\w+Loss)` \|", page, re.M)
    assert dict(rows) == DEFAULT_LOSSES
