"""`python -m raytrain.bootstrap.connected PROGRAM.py [ARGS]`: the program in a process that is connected to Ray."""

from __future__ import annotations

import os
import runpy
import sys

from raytrain.ray_internals.entry import keep_connection


def main(words: list[str]) -> None:
    """Connect to the cluster of RAY_ADDRESS, then run the program as Python would."""
    import ray

    program = words[0]
    sys.argv[:] = words
    sys.path[0] = os.path.dirname(os.path.realpath(program))  # before Ray, which tells its workers
    ray.init()
    keep_connection()
    try:
        runpy.run_path(program, run_name="__main__")
    except Exception as error:  # noqa: BLE001 - the program's own, shown as Python shows it
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != program:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
