"""What measured hosts cost: whole as the type that they are, at their share of a type that they stand for, or not."""

from __future__ import annotations

import pytest
from money import on_sagemaker, prices_file, run_on

from raytrain.cost.compare import compare, curve_of
from raytrain.cost.instances import catalog
from raytrain.cost.priced import cpus_of, priced_hosts

BOTH = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 2, 0)}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A g5.xlarge (4 vCPUs) for $1, a c5.4xlarge (16) for $0.8."""
    path = tmp_path_factory.mktemp("prices") / "p.yaml"
    return catalog(prices_file(path, {"ml.g5.xlarge": 1.0, "ml.c5.4xlarge": 0.8, "ml.c5.xlarge": 0.2}))


def measured(record, cpus, *, device="cpu", cores=64, command=(), attached=False, emulated=True):
    """One GPU host and two CPU hosts with so many CPUs for the stages each."""
    run, changes = run_on(record, "r", BOTH), {"emulated": emulated}
    hosts = [host.model_copy(update={**changes, "cpus": n}) for host, n in zip(run.hosts, cpus, strict=True)]
    ranks = [rank.model_copy(update={"device": device}) for rank in run.ranks]
    hardware = run.hardware.model_copy(update={"cpu_cores": cores})
    parts = {"hosts": hosts, "ranks": ranks, "hardware": hardware}
    return run.model_copy(update={**parts, "command": list(command), "cluster_attached": attached})


def priced(run, known, **given):
    return priced_hosts(run, known, "here-1", given)


def test_a_host_of_the_type_is_priced_whole_whatever_the_stages_had_of_it(record, known):
    found = priced(measured(record, (3, 15, 16), emulated=False, attached=True, device="cuda:0"), known)
    assert (found.usd_per_hour, found.why, found.notes) == (1.0 + 2 * 0.8, None, ())


def test_emulated_hosts_of_the_types_size_are_priced_whole(record, known):
    """Three CPUs for the stages of a host whose fourth is its rank's."""
    assert priced(measured(record, (3, 16, 16)), known).usd_per_hour == pytest.approx(2.6)


def test_cpu_hosts_of_another_size_are_priced_at_their_share_and_it_is_said(record, known):
    """Two of sixteen vCPUs, of two hosts: 2 x 2/16 x $0.8 beside a whole GPU host."""
    run = measured(record, (3, 2, 2))
    found = priced(run, known)
    assert found.usd_per_hour == pytest.approx(1.0 + 2 * 2 / 16 * 0.8)
    assert found.notes == (
        "hosts of 2 CPUs are priced as 2/16 of an ml.c5.4xlarge: assumed that its speed is in proportion to its vCPUs",
    )
    assert f"r: {found.notes[0]}" in compare([run], known, region="here-1").notes
    larger = priced(run, known, cpu="ml.c5.xlarge")
    assert larger.usd_per_hour == pytest.approx(1.0 + 2 * 2 / 4 * 0.2)


def test_a_whole_cluster_at_one_scale_is_priced_at_it(record, known):
    """All of it a half: the emulated GPU, which is a CPU's rank, too."""
    found = priced(measured(record, (1, 8, 8)), known)
    assert found.usd_per_hour == pytest.approx(2.6 / 2)
    assert found.notes[0].endswith(
        "an ml.g5.xlarge: assumed that its speed is in proportion to its vCPUs, and that of its GPUs too"
    )


def test_beside_a_scaled_cluster_no_whole_instance_is_predicted(record, known):
    """Its GPU is a fraction of one, and what it did says nothing about a whole one at the whole price."""
    run = measured(record, (1, 8, 8))
    assert [priced(each, known).scaled for each in (run, measured(record, (3, 2, 2)))] == [True, False]
    comparison = compare([run], known, region="here-1")
    assert [column.predicted for column in comparison.columns] == [False]
    assert any("priced at a share of their types, and no instance is a share of one" in n for n in comparison.notes)
    assert curve_of(run, comparison, known) is None
    whole = compare([measured(record, (3, 2, 2))], known, region="here-1")
    assert [column.predicted for column in whole.columns] == [False, True]


@pytest.mark.parametrize(
    ("cpus", "device", "message"),
    [
        ((1, 4, 4), "cpu", "host gpu-1 had 2 CPUs and an ml.g5.xlarge has 4, and GPUs do not shrink with "),
        ((1, 8, 8), "cuda:0", "host gpu-1 had 2 CPUs and an ml.g5.xlarge has 4, and GPUs do not shrink with them"),
        ((15, 16, 16), "cuda:0", "host gpu-1 had 16 CPUs and an ml.g5.xlarge has 4"),
    ],
)  # fmt: skip
def test_a_gpu_host_of_another_size_has_no_price(record, known, cpus, device, message):
    found = priced(measured(record, cpus, device=device), known)
    assert found.usd_per_hour is None
    assert found.why.startswith(message)
    assert found.hosts == {"ml.g5.xlarge": 1, "ml.c5.4xlarge": 2}


def test_nodes_with_more_cpus_than_the_machine_have_no_price(record, known):
    """4 + 16 + 16 CPUs on two cores: what they did says nothing about hosts that have them."""
    run = measured(record, (3, 16, 16), cores=2)
    found = priced(run, known)
    assert found.usd_per_hour is None
    assert found.why.startswith(
        "its nodes say 36 CPUs and shared the 2 of one machine, so that nothing follows for hosts"
    )
    assert compare([run], known, region="here-1").columns[0].usd_per_million_samples is None
    assert priced(measured(record, (3, 16, 16), cores=36), known).usd_per_hour == pytest.approx(2.6)


def test_a_twins_host_is_not_one_of_the_type(record, known):
    [twin] = on_sagemaker([measured(record, (4, 2, 2), emulated=False, attached=True)], "twin")
    assert priced(twin, known).usd_per_hour == pytest.approx(1.0 + 2 * 2 / 16 * 0.8)


def test_how_many_cpus_a_host_had(record):
    def cpus(*slots, **options):
        run = measured(record, slots, **options)
        return [cpus_of(run, host) for host in run.hosts]

    assert cpus(3, 16, 16, attached=True) == [3, 16, 16], "of a cluster of one's own all are listed"
    assert cpus(3, 16, 16) == [4, 16, 16], "a rank had one"
    assert cpus(1, 1, 1, command=["raytrain", "train", "--nodes", "gpu=1x1x1,cpu=2x1"]) == [1, 1, 1]
    assert cpus(1, 1, 1, command=["raytrain", "train", "--nodes=gpu=1x2x1,cpu=2x1", "--json"]) == [2, 1, 1]
    assert cpus(1, 1, 1, command=["raytrain", "train", "--nodes=gpu=1x2x1,cpu=2x1"]) == [2, 1, 1]
    assert cpus(3, 16, 16, command=["raytrain", "--nodes"]) == [4, 16, 16]
    for own in (["train.py", "--nodes", "2"], ["train.py", "--nodes=2"], ["train.py", "--nodes", "gpu=0x1"]):
        assert cpus(3, 16, 16, command=own) == [4, 16, 16], "a program of the user's own means something else"
    assert cpus(3, 16, 16, command=["train.py", "--nodes", "rack=1x2"]) == [4, 16, 16], "no group of the run"
    assert cpus(3, 16, 16, emulated=False, cores=8) == [8, 8, 8], "this machine, as one host"
    run = measured(record, (3, 16, 16))
    run.job["cluster"] = {"reserved_cpus": 2}
    assert [cpus_of(run, host) for host in run.hosts] == [5, 16, 16]
