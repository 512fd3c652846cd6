"""The other hosts as the head sees them: who is in, who is not and why, who was lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from raytrain.bootstrap.host import Outcome, ThisHost
from raytrain.bootstrap.link import Line, listen
from raytrain.bootstrap.node import RayNode
from raytrain.bootstrap.roster import Member
from raytrain.cluster.network import aside, why_unreachable
from raytrain.errors import ClusterError

PROGRESS_EVERY_S = 10.0
REGISTERED_WITHIN_S = 10.0
CENSUS_EVERY_S = 1.0
RANKS_KNOWN_FOR_S = 40.0  # longer than a silent host's line lives
DIAGNOSIS_TIMEOUT_S = 3.0
FLUSH_TIMEOUT_S = 2.0
DISMISS_TIMEOUT_S = 4.0


@dataclass
class Mate:
    """One other host.

    Attributes:
        line: to it, while it is there.
        cause: why it is not in, as far as is known.
        failed: it said that it cannot join.
        node_id: of its Ray node, once that has started.
        told: how the job ended.
    """

    member: Member
    line: Line | None = None
    cause: str | None = None
    failed: str | None = None
    node_id: str | None = None
    lost: bool = False
    told: bool = False


class Crew:
    """All other hosts.

    Attributes:
        broken: set to the reason when a host is lost that held a training rank.
    """

    def __init__(self, here: ThisHost):
        self.here = here
        self.mates = {member.name: Mate(member) for member in here.roster.others}
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._head_address: str | None = None
        self._running = False
        self._ranks: dict[str, tuple[int, float]] = {}
        self._outcome: Outcome | None = None
        self._gave_up = False
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Let the other hosts call.

        Raises:
            ClusterError: the port is taken.
        """
        here, port = self.here, self.here.options.port + 1
        if self.mates:
            try:
                names = frozenset(self.mates)
                self._server = await listen(port, here.token, here.agreed, names, self._attend, self._refused)
            except OSError as error:
                raise ClusterError(f"port {port} is taken on {here.name} ({error.strerror}); try another") from None

    def start_joining(self, head_address: str) -> None:
        """Ray runs here: tell those who wait for it, and those who come later."""
        self._head_address = head_address
        for mate in self.mates.values():
            if mate.line is not None:
                mate.line.send(join=head_address)

    async def gather(self, node: RayNode, deadline: float) -> None:
        """Wait until every host is in.

        Raises:
            ClusterError: the time is up, a host cannot join or was lost; each missing one is named with its last cause.
        """
        last_said = time.monotonic()
        while missing := [mate for mate in self.mates.values() if mate.node_id is None]:
            self._check_whole(node)
            if time.monotonic() >= deadline:
                self._gave_up = True
                raise ClusterError(await self._who_is_missing(missing))
            if time.monotonic() - last_said >= PROGRESS_EVERY_S:
                last_said = time.monotonic()
                names = "; ".join(f"{mate.member}: {mate.cause or 'it has not called yet'}" for mate in missing)
                self.here.say(f"waiting for {len(missing)} of {len(self.mates) + 1} hosts: {names}")
            self._changed.clear()
            left = min(deadline - time.monotonic(), last_said + PROGRESS_EVERY_S - time.monotonic(), 1.0)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(left, 0.01))
        await self._check_registered(node)
        self._check_whole(node)
        self._running = True
        if self.mates:
            self.here.background.append(asyncio.create_task(self._watch(node)))

    def _check_whole(self, node: RayNode) -> None:
        """Nobody who was in may be lost before the program starts."""
        for mate in self.mates.values():
            if mate.failed or mate.lost:
                raise ClusterError(f"{mate.member} cannot join: {mate.failed or mate.cause}")
        if node.ended.done():
            raise ClusterError(f"Ray ended on the head: {node.ended.result()}")

    async def _who_is_missing(self, missing: list[Mate]) -> str:
        async def why(mate: Mate) -> str:
            cause = mate.cause
            if cause is None:
                try:
                    cause = await asyncio.wait_for(aside(why_unreachable, mate.member.name), DIAGNOSIS_TIMEOUT_S)
                except TimeoutError:
                    cause = "it did not call, and its name is slow to resolve"
            return f"{mate.member}: {cause}"

        causes = await asyncio.gather(*map(why, missing))
        total, timeout = len(self.mates) + 1, self.here.options.join_timeout_s
        return f"{total - len(missing)} of {total} hosts joined within {timeout:g} s; missing: {'; '.join(causes)}"

    async def _check_registered(self, node: RayNode) -> None:
        """Ray itself must know all that said they are in."""
        deadline = time.monotonic() + REGISTERED_WITHIN_S
        while True:
            alive, _ = await node.census()
            unknown = [mate for mate in self.mates.values() if mate.node_id not in alive]
            if not unknown:
                return
            if time.monotonic() > deadline:
                names = ", ".join(str(mate.member) for mate in unknown)
                raise ClusterError(f"Ray lost {names} before the program started")
            await asyncio.sleep(0.2)

    async def _attend(self, line: Line) -> None:
        """One host's line, from its first word to its end."""
        mate = self.mates[line.name]
        if self._outcome is not None:
            line.send(end=self._outcome.status, failure=self._outcome.failure)
            await line.flush(FLUSH_TIMEOUT_S)
            mate.told = True
            return
        if mate.line is not None:
            line.send(end=2, failure=f"another {line.name} is there already")
            await line.flush(FLUSH_TIMEOUT_S)
            return
        mate.line, mate.cause = line, "it is starting Ray"
        if self._head_address is not None:
            line.send(join=self._head_address)
        async for message in line.messages():
            if "joined" in message:
                mate.node_id = message["joined"]
                total = len(self.mates) + 1
                here = total - sum(other.node_id is None for other in self.mates.values())
                facts = f"{message['cpus']:g} CPUs, {message['gpus']:g} GPUs"
                self.here.say(f"{mate.member} is in with {facts}: {here} of {total} hosts")
            elif "failed" in message:
                mate.failed = message["failed"]
            elif "signal" in message:
                self.here.say(f"{mate.member} was asked to stop")
                self.here.stop(message["signal"])
            elif "lost" in message:
                await self._lose(mate, message["lost"])
            self._changed.set()
        mate.line = None
        await self._lose(mate, "its bootstrap is gone")
        self._changed.set()

    def _refused(self, name: str, reason: str) -> None:
        self.here.say(f"refused a call of {name[:80]!r}: {reason}")
        if name in self.mates and self.mates[name].line is None:
            self.mates[name].cause = f"its call was refused, {reason}"

    async def _lose(self, mate: Mate, why: str) -> None:
        """A host is lost; Ray copes, unless a training rank went with it."""
        if mate.lost:
            return
        mate.lost, mate.cause = True, why
        if not self._running:
            return
        # a host that fell silent is taken off Ray's list before its line is given up
        ranks, seen = self._ranks.get(mate.node_id, (0, 0.0))
        if time.monotonic() - seen > RANKS_KNOWN_FOR_S:
            ranks = 0
        with contextlib.suppress(ClusterError):
            ranks = max(ranks, (await self.here.node.census())[1].get(mate.node_id, 0))
        self.here.say(f"lost {mate.member}: {why}; " + (f"it held {ranks} training ranks" if ranks else "Ray goes on"))
        if ranks and not self.broken.done():
            self.broken.set_result(f"{mate.member} was lost and with it a training rank: {why}")

    async def _watch(self, node: RayNode) -> None:
        """Remember where the ranks are, for when it can no longer be asked, and notice hosts that Ray has given up.

        Whichever notices a silent host first, Ray's health check or its line.
        """
        while True:
            with contextlib.suppress(ClusterError):
                alive, ranks = await node.census()
                now = time.monotonic()
                if ranks:  # where there are none any more, they have left
                    self._ranks = {node_id: known for node_id, known in self._ranks.items() if node_id not in alive}
                self._ranks |= {node_id: (count, now) for node_id, count in ranks.items()}
                for mate in self.mates.values():
                    if mate.node_id not in alive:
                        await self._lose(mate, "Ray no longer hears from it")
            await asyncio.sleep(CENSUS_EVERY_S)

    async def dismiss(self, outcome: Outcome) -> None:
        """Tell everybody how it ended, and see them off."""
        self._outcome = outcome
        had_their_time = self._running or self._gave_up or self.here.stopped.done()
        self._running = False
        if self._server is None:
            return
        for mate in self.mates.values():
            if mate.line is not None:
                mate.line.send(end=outcome.status, failure=outcome.failure)
                mate.told = True

        def stay() -> list[Mate]:
            """Those who have not left, and those who may still call to hear that it is over already."""
            return [m for m in self.mates.values() if m.line is not None or not (had_their_time or m.told or m.lost)]

        deadline = time.monotonic() + DISMISS_TIMEOUT_S
        while time.monotonic() < deadline and stay():
            await asyncio.sleep(0.02)
        self._server.close()
        for mate in stay():
            if mate.line is not None:
                self.here.say(f"{mate.member} has not left")
