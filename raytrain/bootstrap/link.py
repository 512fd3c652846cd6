"""The line between the head and every other host: JSON lines over TCP, after both have proven that they hold the token.

A host that is gone closes its end, or stops answering the kernel's keep-alive probes; either ends the line. Like Ray's
own traffic it is not encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from raytrain.errors import ClusterError

HANDSHAKE_TIMEOUT_S = 10.0
LINE_BYTES = 1 << 16
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 5, 4, 3  # a silent host is given up after 17 s


class Line:
    """One end of a connection that both sides trust.

    Attributes:
        name: of the host at the other end.
    """

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.name = name
        self._reader, self._writer = reader, writer

    def send(self, **message: Any) -> None:
        """Queue a message; what cannot be sent is lost, and the other end's silence tells."""
        with contextlib.suppress(OSError, RuntimeError):
            _write(self._writer, message)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """What the other end says, until it is gone."""
        while True:
            try:
                yield await _read(self._reader)
            except (OSError, EOFError, ValueError):
                return

    async def flush(self, timeout_s: float) -> None:
        """Wait until what was sent has left this process."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.drain(), timeout_s)

    def close(self) -> None:
        self._writer.close()


def proof(token: str, *words: str) -> str:
    """What only a holder of the token can say about these words (HMAC-SHA256, RFC 2104)."""
    return hmac.new(token.encode(), "\n".join(words).encode(), hashlib.sha256).hexdigest()


async def listen(
    port: int,
    token: str,
    agreed: str,
    expected: frozenset[str],
    joined: Callable[[Line], Awaitable[None]],
    refused: Callable[[str, str], None],
) -> asyncio.Server:
    """Let the other hosts in.

    Args:
        port: on every interface.
        token: the job's; empty for none.
        agreed: what the hosts must agree about.
        expected: names of the hosts that may call.
        joined: called with each line that is trusted; the line is closed when it returns.
        refused: called with the name that a caller gave and the reason.

    Raises:
        OSError: the port is taken.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name = await asyncio.wait_for(_admit(reader, writer, token, agreed, expected, refused), HANDSHAKE_TIMEOUT_S)
            if name is not None:
                await joined(Line(name, reader, writer))
        except (TimeoutError, OSError, EOFError, ValueError):
            pass  # not one of ours: a port scan, or a host that died meanwhile and will be missed by name
        finally:
            writer.close()

    return await asyncio.start_server(serve, port=port, limit=LINE_BYTES, family=socket.AF_INET)


async def _admit(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    token: str,
    agreed: str,
    expected: frozenset[str],
    refused: Callable[[str, str], None],
) -> str | None:
    _keep_alive(writer)
    ours = secrets.token_hex(16)
    _write(writer, {"nonce": ours})
    hello = await _read(reader)
    name, theirs = str(hello.get("name", "")), str(hello.get("nonce", ""))
    reason = None
    if not _same(proof(token, "member", ours, theirs, name), hello.get("proof")):
        reason = "its token is not the head's"
    elif name not in expected:
        reason = "it is not a host of this job"
    elif hello.get("agreed") != agreed:
        reason = "it disagrees with the head about the hosts, the head or raytrain's version"
    if reason:
        refused(name, reason)
        _write(writer, {"refused": reason})
        await writer.drain()
        return None
    _write(writer, {"proof": proof(token, "head", ours, theirs, name)})
    return name


async def call(address: str, port: int, name: str, head: str, token: str, agreed: str) -> Line:
    """Connect to the head as host `name`.

    Raises:
        ClusterError: the head refuses, or cannot prove that it holds the token.
        OSError: nobody answers (yet).
    """
    writer = None
    trusted = False
    try:
        opened = asyncio.open_connection(address, port, limit=LINE_BYTES)
        reader, writer = await asyncio.wait_for(opened, HANDSHAKE_TIMEOUT_S)
        answer = await asyncio.wait_for(_introduce(reader, writer, name, token, agreed), HANDSHAKE_TIMEOUT_S)
        trusted = answer["proven"]
    except TimeoutError:
        raise TimeoutError(f"no answer within {HANDSHAKE_TIMEOUT_S:g} s") from None
    except (EOFError, ValueError) as error:
        raise ConnectionError("the head closed the line") from error
    finally:
        if writer is not None and not trusted:
            writer.close()
    if "refused" in answer:
        raise ClusterError(f"the head {head} refuses {name}: {answer['refused']}")
    if not trusted:
        raise ClusterError(f"what answers at {address}:{port} does not hold the token of {name}")
    return Line(head, reader, writer)


async def _introduce(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, token: str, agreed: str
) -> dict[str, Any]:
    _keep_alive(writer)
    theirs = str((await _read(reader)).get("nonce", ""))
    ours = secrets.token_hex(16)
    said = {"name": name, "nonce": ours, "agreed": agreed, "proof": proof(token, "member", theirs, ours, name)}
    _write(writer, said)
    answer = await _read(reader)
    wanted = proof(token, "head", theirs, ours, name)
    return {**answer, "proven": _same(wanted, answer.get("proof"))}


def _same(one: str, other: object) -> bool:
    return hmac.compare_digest(one.encode(), str(other).encode())


def _write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return message if isinstance(message, dict) else {}


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    # data that was sent and not acknowledged suspends the probes; this bounds that case alike
    silent_ms = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silent_ms)
