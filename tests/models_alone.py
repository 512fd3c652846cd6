"""Models that the processes of `raytrain.infer.streams.alone` load: a module that is soon imported."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import torch

from raytrain.errors import ConfigError
from raytrain.infer.contract import BackendOptions, ModelFile, Outputs


class Model:
    def __init__(self, file: ModelFile, options: BackendOptions):
        self.file, self.options, self.calls = file, options, 0

    def __call__(self, images: torch.Tensor) -> Outputs:
        self.calls += 1
        self.called()
        return Outputs(images.sum(dim=1, keepdim=True))

    def called(self) -> None:
        pass


class Witness(Model):
    """Of all threads of its process where they may run."""

    def called(self) -> None:
        if self.calls == 1:
            torch.mm(torch.ones(400, 400), torch.ones(400, 400))
            status = [(task / "status").read_text() for task in Path("/proc/self/task").iterdir()]
            seen = {
                "allowed": [re.search(r"Cpus_allowed_list:\s*(\S+)", each)[1] for each in status],
                "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), self.options.threads],
                "session": [os.getpid(), os.getsid(0)],
                "maps": Path("/proc/self/maps").read_text(),
            }
            Path(self.file.source, f"{os.getpid()}.json").write_text(json.dumps(seen))


class Dies(Model):
    """In the stream on one CPU, when it runs."""

    def called(self) -> None:
        if self.calls == 5 and os.sched_getaffinity(0) == {int(self.file.source)}:
            print("out of luck", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


class Ends(Model):
    def called(self) -> None:
        os._exit(3)


class Fails(Model):
    def called(self) -> None:
        raise ValueError("no such\nlayer")


class Misses(Model):
    def called(self) -> None:
        raise ConfigError("this model takes two inputs")


class Hangs(Model):
    def called(self) -> None:
        time.sleep(1000)
