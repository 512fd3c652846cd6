"""A bucket on loopback."""

from __future__ import annotations

import contextlib

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def bucket(name):
    """Of moto's HTTP server: its client; boto3 and pyarrow find it by themselves meanwhile."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket=name)
        yield client
    server.stop()


@pytest.fixture(scope="module")
def s3():
    with bucket("data") as client:
        yield client
