"""A Ray cluster that is there already: where it is, whether it answers, and whether it lets us in.

Ray itself goes on trying for half a minute and more, and its C++ logs every time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from raytrain.cluster.environment import public_ray, ray_address, token_mode, uses_tls
from raytrain.errors import ClusterError, one_line
from raytrain.ray_internals.entry import address_of_this_machine, knock

ANSWER_S = 4.0  # for a server to answer, in tries of
TRY_S = 2.0
# HTTP/2's connection preface and an empty SETTINGS frame; whoever speaks HTTP/2, as gRPC does, answers with one.
# https://www.rfc-editor.org/rfc/rfc9113#section-3.4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_FRAME = 4


def find(address: str) -> str:
    """A running cluster's HOST:PORT, from that or from `auto`: RAY_ADDRESS if it is set, else that of this machine.

    Raises:
        ClusterError: no cluster answers there, or it wants another token.
    """
    if address == "auto":
        address = ray_address() or address
    automatic = address == "auto"
    if automatic:
        if (known := address_of_this_machine(public_ray())) is None:
            raise _none()
        if known == "auto":
            return known  # Ray looks for it when it is attached to
        address = known
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        raise ClusterError(f"--address {address!r} must be auto or HOST:PORT, as `ray start --head` prints it")
    try:
        _await_answer(host.strip("[]"), int(port))
    except (OSError, OverflowError) as error:
        if automatic and isinstance(error, ConnectionRefusedError):
            raise _none() from None  # Ray remembers the last cluster of this machine, whether it still runs or not
        raise ClusterError(f"cannot attach to the Ray cluster at {address}: {error}") from None
    _check_token(address, found=automatic)
    return address


def _none() -> ClusterError:
    return ClusterError("--address auto: no Ray cluster runs on this machine; start one or use --nodes")


def _await_answer(host: str, port: int) -> None:
    """That a server of Ray's kind listens there; one that is busy is tried again.

    Raises:
        OSError: nobody, or somebody else.
    """
    until = time.monotonic() + ANSWER_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=TRY_S) as connection:
                if uses_tls() or _speaks_http2(connection):
                    return
            raise OSError("what answers there is not Ray; its port is 6379 unless another was given")
        except TimeoutError:
            if time.monotonic() >= until:
                raise


def _speaks_http2(connection: socket.socket) -> bool:
    connection.sendall(PREFACE)
    head = b""
    while len(head) < 4 and (more := connection.recv(4 - len(head))):
        head += more
    return head[3:] == bytes([SETTINGS_FRAME])


def _check_token(address: str, found: bool) -> None:
    """That the cluster lets us in; of Ray's tokens, the one in the user's home is shown if it was `found`.

    Raises:
        ClusterError: it wants a token, or another.
    """
    import ray

    try:
        with no_native_log():
            knock(address, found, public_ray())
    except ray.exceptions.AuthenticationError:
        if token_mode():
            what = "does not accept this token; give the cluster's in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        else:
            what = "wants a token; set RAY_AUTH_MODE=token to show it yours (~/.ray/auth_token, or RAY_AUTH_TOKEN)"
        raise ClusterError(f"the Ray cluster at {address} {what}") from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"cannot attach to the Ray cluster at {address}: {one_line(error, 300)}") from None


@contextlib.contextmanager
def no_native_log() -> Iterator[None]:
    """Nothing on standard error for a moment: Ray's C++ writes there past Python, even that it was told not to."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
