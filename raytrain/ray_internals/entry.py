"""How one gets into a Ray cluster that is there already: its address on this machine, and its token."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import Any

from raytrain.ray_internals.contract import Contract
from raytrain.ray_internals.loopback import localhost_kept

NOTHING_NEW = {"address", "ignore_reinit_error"}

ENTRY = Contract(
    does="looking for a cluster before attaching to it",
    needs=(
        "ray._private.services:canonicalize_bootstrap_address",
        "ray._private.authentication.authentication_token_setup:maybe_enable_token_auth_if_token_available with "
        "warn_if_disabled",
        "ray._raylet:GcsClient",
    ),
    buys="a wrong or missing token is one line at once, where Ray goes on trying and logs; `auto` shows the token in "
    "the user's home",
    instead="ray.init tries by itself",
)

TOKEN = Contract(
    does="a token for the clusters that raytrain starts on this machine",
    needs=("ray._raylet:Config.initialize", "ray._raylet:AuthenticationTokenLoader.instance().reset_cache"),
    buys="nobody else of this machine, and no page in its browser, can run code in them: Ray asks for a token only in "
    "the clusters that its own ray.init or command line starts",
    instead="they ask for none, unless RAY_AUTH_MODE=token is set beforehand",
)


def read_token_again() -> None:
    """What this process's environment now says of the token; Ray has read it when it was imported."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def address_of_this_machine(public: bool) -> str | None:
    """HOST:PORT of the cluster that Ray takes for this machine's current one, running or not; None for none. `auto`
    where only Ray's own ray.init knows."""
    if not ENTRY.holds(public):
        return "auto"
    from ray._private.services import canonicalize_bootstrap_address

    with contextlib.suppress(ConnectionError), localhost_kept(public):
        return canonicalize_bootstrap_address("auto") or None
    return None


def knock(address: str, found: bool, public: bool) -> None:
    """That the cluster lets us in.

    Clusters that `ray.init()` starts want the token that it leaves in the user's home. As Ray does, it is shown to a
    cluster that was `found` on this machine, not to any that was named.

    Raises:
        ray.exceptions.AuthenticationError: it wants a token, or another.
        ray.exceptions.RayError: anything else.
    """
    if not ENTRY.holds(public):
        return
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient

    if found:
        logging.getLogger(tokens.__name__).setLevel(logging.ERROR)  # that there is a token is no news
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    GcsClient(address=address)


def keep_connection() -> None:
    """From now on the program's own `ray.init()` returns what is connected already."""
    import ray

    ray.init = again(ray.init, ray.is_initialized, ray.shutdown)


def again(connect: Any, is_connected: Any, leave: Any) -> Any:
    """`ray.init` for a connected program: what is connected, or a new connection where it asks for more."""

    @functools.wraps(connect)
    def init(*given: Any, **options: Any) -> Any:
        if is_connected() and not options.keys() <= NOTHING_NEW:
            leave()
        return connect(*given, **{**options, "ignore_reinit_error": True})

    return init
