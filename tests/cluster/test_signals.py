"""Ctrl-C and SIGTERM, and that Ray leaves them to us."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import time

import pytest

from raytrain.cluster.signals import signals
from raytrain.errors import Stopped
from raytrain.ray_internals.sigterm import sigterm_left_alone

STOPS = ("stopped before training began", "stopped at once, without waiting for a checkpoint")


def test_a_stop_that_is_passed_on_twice_is_one_stop_and_ctrl_c_is_another():
    with signals(*STOPS) as heard:
        heard.begun.set()
        for _ in range(2):  # the launcher's and the shell's
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard.number == signal.SIGTERM
        with pytest.raises(Stopped, match="stopped at once, without waiting for a checkpoint"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_a_stop_that_is_swallowed_where_it_comes_is_told_afterwards():
    with signals(*STOPS) as heard:
        heard.check()
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        with pytest.raises(Stopped, match="stopped before training began") as caught:
            heard.check()
        assert caught.value.exit_code == 143
        heard.begun.set()
        heard.check()  # from now on whoever trains asks for a checkpoint first


def test_ray_leaves_sigterm_alone_and_gets_it_back():
    from ray._private import node, utils, worker

    rays, before = utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    for module in (node, worker):  # looked up there when it is called
        assert "ray._private.utils.set_sigterm_handler(" in inspect.getsource(module)
    with sigterm_left_alone(public=True):
        assert utils.set_sigterm_handler is rays
    with sigterm_left_alone(public=False):
        utils.set_sigterm_handler(lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is before
    assert utils.set_sigterm_handler is rays
