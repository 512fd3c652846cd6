"""SIGTERM, which Ray takes for itself wherever it starts a node or connects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from raytrain.ray_internals.contract import Contract, standing_in

SIGTERM = Contract(
    does="a stop while Ray starts",
    needs=("ray._private.utils:set_sigterm_handler",),
    looked_up={"ray._private.utils:set_sigterm_handler": "ray._private.worker"},
    buys="SIGTERM is told and has its exit code at any moment; Ray's handlers end the process with 1 or 15 and no word",
    instead="the handler is put back when Ray has started",
)


@contextlib.contextmanager
def sigterm_left_alone(public: bool) -> Iterator[None]:
    """Meanwhile Ray puts no handler in place; the caller puts its own back afterwards, where it has after all."""
    if not SIGTERM.holds(public):
        yield
        return
    from ray._private import utils

    with standing_in((utils, "set_sigterm_handler", lambda _handler: None)):
        yield
