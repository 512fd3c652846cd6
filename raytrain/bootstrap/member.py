"""The life of every host but the head: find the head, start Ray, stay until the head says how it ended."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from raytrain.bootstrap import link
from raytrain.bootstrap.host import Outcome, ThisHost
from raytrain.cluster import network
from raytrain.errors import ClusterError, RaytrainError, one_line

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
HEADS_VERDICT_S = 10.0  # the head's own time-outs come first, so that all hosts tell the same story


async def follow(here: ThisHost) -> Outcome:
    """Returns how the job ended, as the head says it, or that the head is gone."""
    try:
        line, address = await here.unless_stopped(_find_head(here))
    except RaytrainError as error:
        here.say(str(error))
        return Outcome(error.exit_code, str(error))
    here.say(f"the head {line.name} answers at {address}")
    orders: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    listener = asyncio.create_task(_listen(line, orders))
    try:
        outcome = await _serve(here, line, address, orders)
    finally:
        listener.cancel()
    if outcome.failure:
        here.say(outcome.failure)
    await here.end()
    line.close()
    return outcome


async def _find_head(here: ThisHost) -> tuple[link.Line, str]:
    """Call until the head answers; names may not resolve at first, and the head may start later.

    Raises:
        ClusterError: the head refuses this host, or did not answer in time.
    """
    head, options = here.roster.head.name, here.options
    deadline = here.started + options.join_timeout_s + HEADS_VERDICT_S
    pause, cause, next_said = FIRST_PAUSE_S, "", time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            address = await network.aside(network.resolve, head)
            called = await link.call(address, options.port + 1, here.name, head, here.token, here.agreed)
            return called, address
        except OSError as error:
            cause = one_line(error, 200)
        if time.monotonic() >= next_said:
            here.say(f"the head {head} does not answer yet: {cause}")
            next_said += 10
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    within = options.join_timeout_s + HEADS_VERDICT_S
    raise ClusterError(f"the head {here.roster.head} did not answer within {within:g} s: {cause}")


async def _listen(line: link.Line, orders: asyncio.Queue[dict[str, Any] | None]) -> None:
    async for message in line.messages():
        orders.put_nowait(message)
    orders.put_nowait(None)


async def _serve(here: ThisHost, line: link.Line, head: str, orders: asyncio.Queue[dict[str, Any] | None]) -> Outcome:
    """Start Ray when told to, then wait for the end."""
    order = asyncio.create_task(orders.get())
    starting: asyncio.Task[None] | None = None
    told, deadline = False, None
    while True:
        waiting = {order, *({here.stopped} if not told else ()), *({starting} if starting else ())}
        if starting is None and here.node.facts:
            waiting.add(here.node.ended)
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if order in done:
            message = order.result()
            if message is None:
                return Outcome(1, f"the head {here.roster.head} is gone")
            if "end" in message:
                return Outcome(message["end"], message["failure"])
            starting = asyncio.create_task(_join(here, line, head, message["join"]))
            order = asyncio.create_task(orders.get())
        elif starting in done:
            starting = None
        elif here.node.ended in done:
            line.send(lost=here.node.ended.result())
            here.say(f"Ray ended here: {here.node.ended.result()}")
            here.node.facts = {}
        elif here.stopped in done:
            told, deadline = True, time.monotonic() + here.options.grace_s + HEADS_VERDICT_S
            line.send(signal=here.stopped.result())
        else:
            number = here.stopped.result()
            return Outcome(128 + number, "stopped; the head did not say how the program ended")


async def _join(here: ThisHost, line: link.Line, head: str, head_address: str) -> None:
    """Start this host's Ray node and say so, or why not."""
    try:
        own, interface = await network.aside(network.own_address, here.roster.interface, here.name, head)
        await here.node.start(here.node_spec(own, head_address, interface))
        facts = here.node.facts
        here.say(f"Ray runs here with {facts['cpus']:g} CPUs, {facts['gpus']:g} GPUs")
        line.send(joined=facts["node_id"], cpus=facts["cpus"], gpus=facts["gpus"])
    except ClusterError as error:
        line.send(failed=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the head must not wait for this host
        line.send(failed=f"{type(error).__name__}: {one_line(error, 300)}")
