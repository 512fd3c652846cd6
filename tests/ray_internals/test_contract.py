"""Each use of what Ray does not document: this Ray has it, and a Ray without it is noticed before it is used."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest
import ray

from raytrain import ray_internals
from raytrain.errors import Stopped
from raytrain.ray_internals import contract as module
from raytrain.ray_internals.contract import Contract, find

CONTRACTS = {
    value.does: value
    for each in pkgutil.iter_modules(ray_internals.__path__)
    for value in vars(importlib.import_module(f"raytrain.ray_internals.{each.name}")).values()
    if isinstance(value, Contract)
}
NAMES = [(does, name) for does, each in CONTRACTS.items() for name in (*each.needs, *each.looked_up)]


def test_there_is_a_contract_for_each_purpose():
    assert len(CONTRACTS) == 14
    assert all(each.buys and each.instead for each in CONTRACTS.values())


@pytest.mark.parametrize(("does", "name"), NAMES, ids=lambda value: value)
def test_this_ray_has(does, name):
    """Fails with the name that is gone, and what it was for."""
    contract = CONTRACTS[does]
    if ":" in name:
        try:
            find(name)
        except LookupError as error:
            pytest.fail(f"Ray {ray.__version__} has no {error}, which {does} needs; it buys {contract.buys}")
    if name in contract.looked_up:
        module._looks_up(contract.looked_up[name], name)


@pytest.mark.parametrize("does", CONTRACTS)
def test_this_ray_keeps_the_contract(does):
    assert CONTRACTS[does].broken() == []


def test_a_users_ctrl_c_in_the_midst_of_a_check_is_no_broken_contract(capsys):
    def stop():
        raise Stopped("stopped before training began", 2)

    contract = Contract("this", (), "much", "otherwise", proof=stop)
    with pytest.raises(Stopped):
        contract.holds(False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("ray.no_such_module:x", "module ray.no_such_module"),
        ("ray.data:Dataset.iter_nothing", "ray.data:Dataset.iter_nothing"),
        ("ray.data.block:BlockMetadata.flavour", "ray.data.block:BlockMetadata.flavour"),
        ("ray.data.block:BlockExecStats.a_time_s|b_time_s", "ray.data.block:BlockExecStats.a_time_s|b_time_s"),
        ("ray.data:DataContext()._no_such_setting", "ray.data:DataContext()._no_such_setting"),
        ("ray:init with address flavour", "parameter flavour of ray:init"),
    ],
)
def test_what_is_gone_is_named(name, missing):
    with pytest.raises(LookupError) as caught:
        find(name)
    assert missing in str(caught.value)
    assert find("ray.data.block:BlockExecStats.flavour|task_idx") is None, "a field of the instances"


def broken(**changes) -> Contract:
    return Contract(**{"does": "baking", "needs": (), "buys": "bread", "instead": "buying it", **changes})


def test_a_patch_that_nobody_would_look_at_breaks_the_contract():
    """The name is there, and can be replaced; but the module has no code that looks it up."""
    name = "ray.data._internal.stats:get_or_create_stats_actor"
    assert broken(looked_up={name: "ray.data._internal.stats"}).broken() == []
    contract = broken(looked_up={name: "ray.data.block"})
    assert contract.broken() == [f"a look-up of {name} in ray.data.block"]


def test_a_proof_that_fails_breaks_the_contract():
    assert broken(proof=lambda: int("x")).broken()[0].startswith("ValueError: invalid literal")


def test_a_broken_contract_is_said_once_and_the_public_way_taken(capsys):
    contract = broken(needs=("ray:no_such_name",))
    assert not contract.holds(public=False)
    assert not contract.holds(public=False)
    said = capsys.readouterr().err
    assert said == (
        f"raytrain: Ray {ray.__version__} lacks ray:no_such_name; baking now goes through Ray's public API: buying it\n"
    )
    assert not contract.holds(public=True)
    assert capsys.readouterr().err == "", "whoever asked for it knows"


def test_a_contract_that_holds_is_kept_unless_the_user_wants_the_public_way(capsys):
    assert broken().holds(public=False)
    assert not broken(proof=lambda: sys.exit("looked at")).holds(public=True)
    assert capsys.readouterr().err == ""


def test_nothing_of_rays_stays_changed_in_the_users_process():
    """Ray Train's controller asks which actor it is in; of raytrain's it is in none, and only it hears so."""
    from ray.runtime_context import RuntimeContext
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    from raytrain.ray_internals.train import lean_trainer

    before, method = RuntimeContext.current_actor, WorkerGroup._init_train_context_on_workers
    lean_trainer()
    assert RuntimeContext.current_actor is before
    assert WorkerGroup._init_train_context_on_workers is method
    assert method.__globals__["ray"] is ray


def test_rays_printing_is_its_own_again(monkeypatch):
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    from raytrain.ray_internals.logs import RAYS_PRINTER, leave_output_to_ray, show_worker_output

    shown = []
    monkeypatch.setattr(dispatcher, "handlers", [(RAYS_PRINTER, print)])  # as ray.init leaves it
    show_worker_output(shown.append, public=True)
    assert dispatcher.handlers == [(RAYS_PRINTER, print)]
    for _ in range(2):
        show_worker_output(shown.append, public=False)
    dispatcher.emit({"lines": ["x"]})
    assert shown == [{"lines": ["x"]}], "once, and by nobody else"
    leave_output_to_ray()
    assert dispatcher.handlers == []
