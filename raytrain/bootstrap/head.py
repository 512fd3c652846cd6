"""The life of the head: start Ray, wait for everybody, run the program once, tell everybody how it ended."""

from __future__ import annotations

import asyncio
import signal
import time

from raytrain.bootstrap import prometheus
from raytrain.bootstrap.crew import Crew
from raytrain.bootstrap.host import Outcome, ThisHost
from raytrain.bootstrap.program import Program, exit_status
from raytrain.bootstrap.roster import Roster
from raytrain.cluster import network
from raytrain.cluster.environment import LOCALHOST_KEPT, STOP_GRACE, training_job
from raytrain.errors import ClusterError, RaytrainError, one_line
from raytrain.ray_internals.loopback import LOOPBACK

POLL_S = 0.1
STRAYS_S = 3.0


async def lead(here: ThisHost) -> Outcome:
    """Returns how the job ended, when all other hosts have been told."""
    crew = Crew(here)
    collecting = None
    try:
        await crew.open()
        await here.unless_stopped(asyncio.to_thread(prometheus.check, here.options))
        address = await here.unless_stopped(_start_ray(here, crew))
        collecting = await prometheus.start(here)
        outcome = await _run(here, crew, address)
        await _linger(here, outcome)
    except RaytrainError as error:
        outcome = Outcome(error.exit_code, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must hear that it is over
        outcome = Outcome(1, f"{type(error).__name__}: {one_line(error, 500)}")
    if outcome.failure:
        here.say(outcome.failure, status=outcome.status)
    await asyncio.gather(crew.dismiss(outcome), prometheus.stop(collecting))
    return outcome


async def _start_ray(here: ThisHost, crew: Crew) -> str:
    """Returns the cluster's address when every host is in it."""
    options, roster = here.options, here.roster
    deadline = here.started + options.join_timeout_s
    own, interface = await network.aside(_own_address, roster)
    port = options.port
    if not network.port_is_free(port):
        if crew.mates:
            raise ClusterError(f"port {port} is taken on {roster.me.name}; try another --port")
        port = network.free_port()
    address = f"{own}:{port}"
    await here.node.start(here.node_spec(own, address, interface), deadline - time.monotonic())
    facts = here.node.facts
    here.say(f"Ray runs here with {facts['cpus']:g} CPUs, {facts['gpus']:g} GPUs at {address}", address=address)
    crew.start_joining(address)
    await crew.gather(here.node, deadline)
    here.node.serve(options.dashboard)  # not before: the other hosts' nodes come first
    if options.dashboard:
        _say_the_way(here, options.dashboard)
    return address


def _own_address(roster: Roster) -> tuple[str, str | None]:
    """Of this host, and its interface."""
    if roster.alone:
        return LOOPBACK, network.interface_of(LOOPBACK)
    try:
        return network.own_address(roster.interface, roster.me.name)
    except ClusterError:
        if roster.others:
            raise
        return LOOPBACK, None


def _say_the_way(here: ThisHost, dashboard: str) -> None:
    """The command that forwards the dashboard's port out of a SageMaker job."""
    port = dashboard.rpartition(":")[2]
    job, region = training_job()
    if job:
        here.say(
            f"aws ssm start-session --target sagemaker-training-job:{job}_{here.name}"
            + (f" --region {region}" if region else "")
            + " --document-name AWS-StartPortForwardingSession"
            + f' --parameters \'{{"portNumber":["{port}"],"localPortNumber":["{port}"]}}\''
        )


async def _run(here: ThisHost, crew: Crew, address: str) -> Outcome:
    """The program, once, to its end."""
    if here.stopped.done():
        number = here.stopped.result()
        return Outcome(128 + number, f"stopped by {signal.Signals(number).name} before the program started")
    settings = {"RAY_ADDRESS": address, STOP_GRACE: f"{here.options.grace_s:g}", **here.collective_settings(None)}
    environment = here.environment({**settings, **(LOCALHOST_KEPT if address.startswith(LOOPBACK) else {})})
    program = await Program.start(here.options.program, environment, here.options.connect)
    here.awaited.add(program.process.pid)
    here.node.guard(program.process.pid)
    here.say(f"{program.name} runs (pid {program.process.pid})")
    ended = asyncio.create_task(program.wait())
    await asyncio.wait({ended, here.stopped, here.node.ended, crew.broken}, return_when=asyncio.FIRST_COMPLETED)
    if here.stopped.done():
        return await _stop(here, program, ended, here.stopped.result())
    lost = crew.broken.done() or here.node.ended.done()
    if not ended.done() or (lost and ended.result()):
        why = crew.broken.result() if crew.broken.done() else f"Ray ended on the head: {here.node.ended.result()}"
        here.say(why)
        await _let_go(here, program, ended, signal.SIGTERM)
        return Outcome(1, why)
    returncode = ended.result()
    here.say(f"{program.name} ended with {_how(returncode)}")
    return Outcome(exit_status(returncode), program.failure(returncode) if returncode else None)


async def _stop(here: ThisHost, program: Program, ended: asyncio.Task[int], number: int) -> Outcome:
    """Pass the signal on, give the program its time for a checkpoint, and report a stop whatever it returned."""
    began = time.monotonic()
    in_time = await _let_go(here, program, ended, number)
    how = f"ended with {_how(ended.result())} after {time.monotonic() - began:.1f} s"
    if not in_time:
        how = f"did not end within its {here.options.grace_s:g} s of grace and was killed"
    return Outcome(128 + number, f"stopped by {signal.Signals(number).name}; {program.name} {how}")


async def _let_go(here: ThisHost, program: Program, ended: asyncio.Task[int], number: int) -> bool:
    """Signal the program, wait for it, at last kill what is left; False if the program itself had to be killed.

    A shell goes before the commands that it ran, which may have a checkpoint to write; what another program leaves in
    its group gets a moment only.
    """
    program.signal(number)
    deadline = time.monotonic() + here.options.grace_s
    while time.monotonic() < deadline and not here.impatient.is_set():
        await asyncio.wait({ended}, timeout=POLL_S)
        here.reap()
        if ended.done() and not program.group_lives():
            break
        if ended.done() and not program.is_shell:
            deadline = min(deadline, time.monotonic() + STRAYS_S)
    in_time = ended.done() and not (program.is_shell and program.group_lives())
    program.kill()
    await ended
    return in_time


def _how(returncode: int) -> str:
    if returncode < 0:
        return f"signal {-returncode}"
    return f"exit code {returncode}"


async def _linger(here: ThisHost, outcome: Outcome) -> None:
    """Keep the cluster for a person to look at."""
    if here.options.linger_s <= 0 or here.stopped.done():
        return
    here.say(f"the job's status is {outcome.status}; the cluster stays for {here.options.linger_s:g} s (--linger)")
    if here.token:
        needed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": here.token_path}
        needed |= LOCALHOST_KEPT if here.roster.alone else {}
        words = " ".join(f"{name}={value}" for name, value in needed.items())
        here.say(f"to look at it from a shell here: export {words}")
    await asyncio.wait({here.stopped, here.node.ended}, timeout=here.options.linger_s, return_when="FIRST_COMPLETED")
