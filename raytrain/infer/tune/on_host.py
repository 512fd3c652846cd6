"""Measuring for real, on this host: the model alone by streams without Ray, the whole path by a prediction."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from raytrain.cluster import hardware
from raytrain.cluster.environment import child_environment
from raytrain.config.inference import Allocator, Backend, Inference, PredictionJob, Streams
from raytrain.data.producer import Producer
from raytrain.errors import ConfigError, RaytrainError, Stopped, one_line
from raytrain.infer.backends.find import find_model
from raytrain.infer.contract import BackendOptions, ModelFile, Setting, StreamShape
from raytrain.infer.of_run import completed
from raytrain.infer.plan import InferencePlan, find_examples
from raytrain.infer.prepare import prepared
from raytrain.infer.streams.allocators import environment
from raytrain.infer.streams.alone import Alone
from raytrain.infer.streams.gpus import share_gpus
from raytrain.infer.streams.shapes import plan_streams
from raytrain.infer.streams.topology import read_topology
from raytrain.infer.tune.points import Subject, this_machine
from raytrain.infer.tune.search import Measured, Refused
from raytrain.infer.tune.space import Machine
from raytrain.infer.tune.tuned import keys_of
from raytrain.infer.tune.tuning import Whole

if TYPE_CHECKING:
    import numpy as np
    import torch

PACKAGES: dict[Backend, tuple[str, ...]] = {
    "eager": (),
    "compile": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
REASON = 300  # characters of why a setting is not possible


def this_host(file: ModelFile) -> Machine:
    """What it has, and which back ends take this model."""
    backends = [name for name, packages in PACKAGES.items() if all(map(find_spec, packages))]
    if file.kind == "onnx":
        backends = [name for name in backends if PACKAGES[name]]
    topology = read_topology()
    cores = min(len(topology.cores), topology.quota or len(topology.cores))
    allocators: list[Allocator] = [name for name in get_args(Allocator) if _is_there(name)]
    return Machine(cores, len(hardware.gpu_names()), tuple(backends), tuple(allocators))


def _is_there(allocator: Allocator) -> bool:
    try:
        environment(Streams(allocator=allocator), 1, child_environment({}))
    except ConfigError:
        return False
    return True


class OnHost:
    """Measures settings of a job. As a context manager, nothing is left running afterwards.

    Args:
        job: as its file has it.

    Raises:
        RaytrainError: the model or the data cannot be found.
    """

    def __init__(self, job: PredictionJob):
        self.job = completed(job)
        self.file = find_model(self.job.model)
        self.machine = this_host(self.file)
        self.plan = InferencePlan.of(self.job, self.file, lambda told: None)
        self.samples = min(self.job.tune.samples, self.plan.num_samples)
        self._found: list[np.ndarray] = []
        self._converted: dict[tuple[str, str], ModelFile] = {}
        self._alone = Alone()

    def __enter__(self) -> OnHost:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._alone.close()

    @property
    def subject(self) -> Subject:
        machine, versions = this_machine()
        others = _merged(self.job.inference, keys_of(Setting(), on_gpu=False)).model_dump()  # than settings say
        said = json.dumps([self.plan.made_by, self.samples, others], sort_keys=True, default=repr)
        return Subject(
            hardware=machine,
            versions=versions,
            model=self.file.digest,
            data=hashlib.sha256(said.encode()).hexdigest(),
        )

    # --- the model alone ---

    def model(self, setting: Setting, effort_s: float) -> Measured:
        from raytrain.infer.backends.load import load

        began = time.monotonic()
        on_gpu = self.machine.gpus > 0 and self.job.inference.device != "cpu"
        options = BackendOptions(
            backend=setting.backend,
            precision=setting.precision,
            threads=setting.cores,
            device="cuda" if on_gpu else "cpu",
            batch_size=setting.batch_size,
            embeddings=self.job.model.embeddings,
        )
        inference = _merged(self.job.inference, keys_of(setting, on_gpu))
        streams = inference.streams
        try:
            batch = self._batch(setting.batch_size)
            shapes = _gpu_shapes(setting) if on_gpu else plan_streams(read_topology(), streams, inference.objective)
            file = self._file(options)
            return self._alone.measure(load, file, options, [batch], shapes, streams, seconds=effort_s)
        except Stopped:
            raise
        except RaytrainError as error:
            return Refused(one_line(error, REASON), time.monotonic() - began)

    def _batch(self, size: int) -> tuple[torch.Tensor, ...]:
        """Of the first samples, again and again."""
        import torch

        inputs = map(torch.from_numpy, self._examples())
        return tuple(each[torch.arange(size) % len(each)].contiguous() for each in inputs)

    def _examples(self) -> list[np.ndarray]:
        """What the model is given, of a few samples that are prepared here."""
        from raytrain.infer.predict import stream_work
        from raytrain.infer.stream import example_inputs

        if self._found:
            return self._found
        plain = Inference(backend="onnx" if self.file.kind == "onnx" else "eager", device=self.job.inference.device)
        job = self.job.model_copy(update={"inference": plain})
        producer, sizes = Producer(self.plan.work), self.plan.sizes

        def ask(ids: np.ndarray) -> tuple[Any, ...]:
            told, blocks = prepared(producer, ids, sizes, {})
            return told, *blocks

        found = find_examples(self.plan.num_samples, ask)
        self._found = example_inputs(stream_work(replace(self.plan, job=job), found))
        return self._found

    def _file(self, options: BackendOptions) -> ModelFile:
        from raytrain.infer.backends.convert import converted

        key = (options.backend, options.precision)
        if key not in self._converted:
            self._converted[key] = converted(self.file, options, self._examples())
        return self._converted[key]

    # --- the whole path ---

    def whole(self, setting: Setting) -> Whole | Refused:
        """A prediction of a sample of the data, Ray started for it."""
        from raytrain.infer.predict import predict

        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="raytrain-tune-") as folder:
                record = predict(self.sample_job(setting, folder))
        except Stopped:
            raise
        except RaytrainError as error:
            return Refused(one_line(error, REASON), time.monotonic() - began)
        wall_s, figures = time.monotonic() - began, record.figures
        if figures.together is None:
            return Refused(f"{record.num_samples} samples are too few for a figure; give more as tune.samples", wall_s)
        return Whole(figures.together, figures.model, figures.prepare, wall_s, figures.text)

    def sample_job(self, setting: Setting, folder: str) -> PredictionJob:
        """
        Raises:
            ConfigError: its source has no `limit`.
        """
        job, source = self.job, self.job.data.source
        if self.samples < self.plan.num_samples:
            if not hasattr(source, "limit"):
                raise ConfigError(
                    f"a source of your own has no `limit`, and all of its {self.plan.num_samples:,} samples would be "
                    "too many; tune.samples may allow them"
                )
            source = source.model_copy(update={"limit": self.samples})
        on_gpu = self.machine.gpus > 0 and job.inference.device != "cpu"
        inference = _merged(job.inference, keys_of(setting, on_gpu))
        return job.model_copy(
            update={
                "data": job.data.model_copy(update={"source": source}),
                "inference": inference,
                "output": job.output.model_copy(update={"path": f"{folder}/predictions"}),
                "run_dir": folder,
            }
        )


def _merged(inference: Inference, keys: dict[str, Any]) -> Inference:
    """With some keys in the place of its own."""
    tree = inference.model_dump()
    for key, value in keys.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return Inference.model_validate(tree)


def _gpu_shapes(setting: Setting) -> list[StreamShape]:
    """On one GPU: tasks that share it, not bound to cores, each with its threads."""
    tasks = share_gpus(setting.tasks_per_gpu, 1, hardware.usable_cpus() // max(len(hardware.gpu_names()), 1))
    return [StreamShape((), max(int(tasks.cpus), 1)) for _ in range(tasks.count)]
