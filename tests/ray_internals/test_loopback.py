"""Where ranks of one machine meet."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raytrain.ray_internals.loopback import localhost_kept, store_config, torch_config

MEET = """
import os, psutil, torch
import torch.distributed as dist
from raytrain.ray_internals.loopback import open_store
for _ in range(2):  # a process may serve several runs
    port = open_store("127.0.0.1")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method="env://", rank=0, world_size=1)
    total = torch.ones(2)
    dist.all_reduce(total)
    listening = [each.laddr for each in psutil.Process().net_connections() if each.status == "LISTEN"]
    print(total.tolist(), {each.ip for each in listening}, port in [each.port for each in listening], len(listening))
    dist.destroy_process_group()
"""


@pytest.mark.process
def test_torch_takes_the_store_that_listens_on_loopback_for_its_own():
    said = subprocess.run([sys.executable, "-c", MEET], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == ["[1.0, 1.0] {'127.0.0.1'} True 2"] * 2


def test_ray_train_gets_its_own_configuration_where_it_is_pickled():
    import cloudpickle
    from ray.train.torch import TorchConfig

    ours = torch_config("gloo", public=False)
    assert isinstance(ours, store_config()) and ours.backend == "gloo"
    copy = cloudpickle.loads(cloudpickle.dumps(ours))
    assert type(copy) is TorchConfig and copy == TorchConfig(backend="gloo")
    assert type(torch_config("nccl", public=True)) is TorchConfig


def test_ray_knows_localhost_by_itself_but_for_a_moment():
    from ray._private import services

    rays = services.resolve_ip_for_localhost
    with localhost_kept(public=False):
        assert services.canonicalize_bootstrap_address("127.0.0.1:6379") == "127.0.0.1:6379"
    assert services.resolve_ip_for_localhost is rays
    with localhost_kept(public=True):
        assert services.resolve_ip_for_localhost is rays
