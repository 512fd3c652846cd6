"""Who is in the cluster and who is head, from SageMaker's resource config."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.bootstrap.roster import from_resource_config, local
from raytrain.errors import ClusterError, ConfigError

GROUPS = [
    {"instance_group_name": "cpu", "instance_type": "ml.c5.4xlarge", "hosts": ["algo-1", "algo-10", "algo-3"]},
    {"instance_group_name": "gpu", "instance_type": "ml.g5.xlarge", "hosts": ["algo-4", "algo-2"]},
]
HOSTS = ["algo-1", "algo-10", "algo-2", "algo-3", "algo-4"]


def config(**changes) -> dict:
    whole = {
        "current_host": "algo-3",
        "current_instance_type": "ml.c5.4xlarge",
        "current_group_name": "cpu",
        "hosts": HOSTS,
        "instance_groups": GROUPS,
        "network_interface_name": "eth0",
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def test_the_head_is_the_first_host_of_the_first_group_with_gpus():
    roster = from_resource_config(config())
    assert roster.head.name == "algo-2" and roster.head.group == "gpu"
    assert [member.name for member in roster.members] == ["algo-1", "algo-3", "algo-10", "algo-2", "algo-4"]
    assert (roster.me.name, roster.me.group, roster.me.instance_type) == ("algo-3", "cpu", "ml.c5.4xlarge")
    assert not roster.am_head and len(roster.others) == 4 and roster.interface == "eth0"


@pytest.mark.parametrize(
    ("kind", "has_gpus"),
    [
        ("ml.p4d.24xlarge", True),
        ("ml.p6e-gb200.36xlarge", True),
        ("ml.g4dn.xlarge", True),
        ("ml.gr6.4xlarge", True),
        ("g6e.2xlarge", True),
        ("ml.c7i.large", False),
        ("ml.trn1.2xlarge", False),
        ("ml.m5.large", False),
        ("ml.inf2.xlarge", False),
        (None, False),
    ],
)
def test_gpu_families_by_aws_naming(kind, has_gpus):
    groups = [
        {"instance_group_name": "a", "instance_type": "ml.m5.large", "hosts": ["algo-1"]},
        {"instance_group_name": "b", "instance_type": kind, "hosts": ["algo-2"]},
    ]
    roster = from_resource_config(
        config(current_host="algo-1", current_group_name="a", hosts=["algo-1", "algo-2"], instance_groups=groups)
    )
    assert roster.head.name == ("algo-2" if has_gpus else "algo-1")


@given(st.randoms(use_true_random=False))
def test_every_host_of_a_job_sees_the_same_head_whatever_the_order_of_hosts(shuffle: random.Random):
    heads = set()
    for host in HOSTS:
        group = next(g for g in GROUPS if host in g["hosts"])
        groups = [{**g, "hosts": shuffle.sample(g["hosts"], len(g["hosts"]))} for g in GROUPS]
        found = from_resource_config(
            config(
                current_host=host,
                current_group_name=group["instance_group_name"],
                hosts=shuffle.sample(HOSTS, len(HOSTS)),
                instance_groups=groups,
            )
        )
        assert found.me.name == host
        heads.add((found.head, found.members))
    assert len(heads) == 1


def test_the_user_can_name_the_heads_group():
    assert from_resource_config(config(), "cpu").head.name == "algo-1"
    with pytest.raises(ConfigError, match=r"--head-group 'cpus' is not a group of this job; did you mean 'cpu'\?"):
        from_resource_config(config(), "cpus")


def test_both_names_of_the_current_group_are_understood():
    documented = config(current_group_name=None, current_instance_group="cpu")
    assert from_resource_config(documented).me.group == "cpu"
    assert from_resource_config(config(current_group_name=None)).me.group == "cpu"


@pytest.mark.parametrize("groups", [None, []])
def test_a_homogeneous_job_is_one_group(groups):
    found = config(current_group_name=None)
    found["instance_groups"] = groups
    roster = from_resource_config(found)
    assert {member.group for member in roster.members} == {"homogeneousCluster"}
    assert roster.head.name == "algo-1" and roster.head.instance_type == "ml.c5.4xlarge"


def test_hosts_are_in_the_order_of_their_numbers_however_long():
    hosts = ["algo-2", "algo-010", "algo-11", "algo-1" + "0" * 5_000, "²", "x"]
    found = config(hosts=[*reversed(hosts)], current_host="x", current_group_name=None, instance_groups=None)
    assert [member.name for member in from_resource_config(found).members] == hosts[:4] + ["x", "²"]


def test_this_machine_alone_is_a_roster_of_one():
    roster = local("laptop")
    assert roster.am_head and roster.others == () and str(roster.me) == "laptop (local)"
    with pytest.raises(ConfigError, match="is not a group of this job"):
        local("laptop", "gpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hosts": None}, "resourceconfig.json: hosts: Field required"),
        ({"current_host": None}, "current_host: Field required"),
        ({"hosts": ["algo-1", "algo-1"]}, "a host is named twice"),
        ({"current_host": "algo-9"}, "current_host 'algo-9' is not among hosts"),
        ({"hosts": [*HOSTS, "algo-7"]}, "hosts and instance_groups disagree about algo-7"),
        (
            {"instance_groups": [GROUPS[0], {**GROUPS[1], "hosts": ["algo-1", "algo-2"]}]},
            "disagree about algo-1, algo-4|algo-4",
        ),
        ({"instance_groups": [*GROUPS, {**GROUPS[0], "hosts": ["x"]}]}, "instance_groups names a group twice"),
        (
            {"instance_groups": [GROUPS[0], {"instance_type": "a", "hosts": ["b"]}]},
            "instance_group_name: Field required",
        ),
        ({"instance_groups": None, "current_group_name": "\ud800"}, "_group_name: Input should be a valid string"),
        ({"current_group_name": "gpu"}, "says that it is in group 'gpu' but instance_groups lists it in 'cpu'"),
    ],
)
def test_a_config_that_contradicts_itself_is_named(changes, message):
    with pytest.raises(ClusterError, match=message):
        from_resource_config(config(**changes))
