"""The line between head and hosts: who gets in, over real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest
from patience import patient

from raytrain.bootstrap import link
from raytrain.bootstrap.link import Line, call, listen
from raytrain.cluster.network import free_port
from raytrain.errors import ClusterError

TOKEN = "t" * 32


def talk(scenario, token: str = TOKEN):
    """Run `scenario(port, joined, refused)` against a listening head."""

    async def whole():
        port, joined, refused = free_port(), [], []

        async def serve(line: Line) -> None:
            joined.append(line.name)
            line.send(hello=line.name)
            async for message in line.messages():
                joined.append(message)

        expected = frozenset({"algo-2"})
        server = await listen(port, token, "agreed", expected, serve, lambda *why: refused.append(why))
        async with server:
            await asyncio.wait_for(scenario(port, joined, refused), patient(20))

    asyncio.run(whole())


def test_both_ends_prove_the_token_and_then_talk():
    async def scenario(port, joined, refused):
        line = await call("127.0.0.1", port, "algo-2", "algo-1", TOKEN, "agreed")
        messages = line.messages()
        assert await anext(messages) == {"hello": "algo-2"}
        line.send(joined="x" * 1000)
        line.close()
        async for _ in messages:
            pass
        while len(joined) < 2:
            await asyncio.sleep(0.01)
        assert joined == ["algo-2", {"joined": "x" * 1000}] and refused == []

    talk(scenario)


@pytest.mark.parametrize(
    ("name", "token", "agreed", "reason"),
    [
        ("algo-2", "u" * 32, "agreed", "its token is not the head's"),
        ("algo-2", "", "agreed", "its token is not the head's"),
        ("algo-9", TOKEN, "agreed", "it is not a host of this job"),
        ("algo-2", TOKEN, "other", "it disagrees with the head about the hosts, the head or raytrain's version"),
    ],
)
def test_strangers_are_refused_with_the_reason(name, token, agreed, reason):
    async def scenario(port, joined, refused):
        with pytest.raises(ClusterError, match=f"the head algo-1 refuses {name}: {reason}"):
            await call("127.0.0.1", port, name, "algo-1", token, agreed)
        assert joined == [] and refused == [(name, reason)]

    talk(scenario)


def test_a_head_that_does_not_hold_the_token_is_not_followed():
    async def whole():
        async def impostor(reader, writer):
            writer.write(b'{"nonce": "00"}\n')
            await reader.readline()
            writer.write(b'{"proof": "guess"}\n')

        port = free_port()
        async with await asyncio.start_server(impostor, "127.0.0.1", port):
            with pytest.raises(ClusterError, match="does not hold the token of algo-2"):
                await call("127.0.0.1", port, "algo-2", "algo-1", TOKEN, "agreed")

    asyncio.run(whole())


NOISE = {
    "a browser": b"GET / HTTP/1.1\r\n\r\n",
    "no text": b"\x00\xff\n",
    "no object": b"[1]\n",
    "endless": b"x" * 200_000,
    "nested too deeply": b"[" * 60_000 + b"\n",
    "a proof that is not ASCII": '{"name": "algo-2", "nonce": "0", "proof": "\u00e9"}\n'.encode(),
    "silence": b"",
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_neither_enters_nor_harms(noise):
    async def scenario(port, joined, refused):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(noise)
        writer.write_eof()
        heard = await reader.read()
        assert b"proof" not in heard
        writer.close()
        line = await call("127.0.0.1", port, "algo-2", "algo-1", TOKEN, "agreed")
        assert await anext(line.messages()) == {"hello": "algo-2"}
        assert joined == ["algo-2"]

    talk(scenario)


def test_a_head_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(link, "HANDSHAKE_TIMEOUT_S", 0.3)

    async def whole():
        async def silent(reader, writer):
            await reader.read()
            writer.close()

        port = free_port()
        async with await asyncio.start_server(silent, "127.0.0.1", port):
            with pytest.raises(TimeoutError, match="no answer within 0.3 s"):
                await call("127.0.0.1", port, "algo-2", "algo-1", TOKEN, "agreed")

    asyncio.run(whole())


def test_the_token_itself_never_travels():
    async def whole():
        heard = []

        async def listener(reader, writer):
            writer.write(json.dumps({"nonce": "00"}).encode() + b"\n")
            heard.append(await reader.readline())
            writer.close()

        port = free_port()
        async with await asyncio.start_server(listener, "127.0.0.1", port):
            with pytest.raises(ConnectionError, match="the head closed the line"):
                await call("127.0.0.1", port, "algo-2", "algo-1", TOKEN, "agreed")
        assert b"proof" in heard[0] and TOKEN.encode() not in heard[0]

    asyncio.run(whole())
