"""What Ray knows of a host's devices: how many GPUs a process may use, and NVIDIA's own figures of them."""

from __future__ import annotations

import ctypes
from typing import Any

from raytrain.ray_internals.contract import Contract


class Gpus:
    """All NVIDIA GPUs of this host, by NVML (https://docs.nvidia.com/deploy/nvml-api), ready for use."""

    def __init__(self, nvml: Any):
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]

    def read(self) -> tuple[float | None, float | None]:
        """Percent busy and percent of memory in use, summed over the GPUs: 100 is one; None where NVML does not tell,
        as of a GPU that is shared out as MIG instances."""
        return self._sum(self._busy), self._sum(self._memory)

    def _sum(self, figure: Any) -> float | None:
        if not self._handles:
            return None
        try:
            return float(sum(figure(handle) for handle in self._handles))
        except self._nvml.NVMLError:
            return None

    def _busy(self, handle: Any) -> float:
        return self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu

    def _memory(self, handle: Any) -> float:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return 100 * memory.used / memory.total


NVML = Contract(
    does="GPU figures",
    needs=(
        "ray._private.thirdparty.pynvml:nvmlInit",
        "ray._private.thirdparty.pynvml:nvmlDeviceGetUtilizationRates",
        "ray._private.thirdparty.pynvml:nvmlDeviceGetHandleByUUID",
        "ray._private.thirdparty.pynvml:nvmlDeviceGetSamples",
        "ray._private.thirdparty.pynvml:nvmlDeviceGetComputeRunningProcesses",
    ),
    buys="figures of the GPUs on every host that has Ray, whatever else is installed there",
    instead="the package nvidia-ml-py, where it is installed",
)
COUNT = Contract(
    does="counting this machine's GPUs",
    needs=(
        "ray._private.accelerators:get_accelerator_manager_for_resource",
        "ray._private.accelerators:NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids",
        "ray._private.accelerators:NvidiaGPUAcceleratorManager.get_current_node_num_accelerators",
    ),
    buys="a number in a hundredth of a second",
    instead="torch counts them, which takes seconds to import",
)


def find_nvml(public: bool) -> Any:
    """NVML as the module pynvml has it, ready for use; None where there is no driver, or it does not answer, or nothing
    to ask it with."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # the driver's; looked for first, since the package is large
    except OSError:
        return None
    if NVML.holds(public):
        from ray._private.thirdparty import pynvml
    else:
        try:
            import pynvml
        except ImportError:
            return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def find_gpus(public: bool) -> Gpus | None:
    """None where NVML is not to be had."""
    nvml = find_nvml(public)
    try:
        return None if nvml is None else Gpus(nvml)
    except nvml.NVMLError:
        return None


def usable_gpus(public: bool) -> int:
    """GPUs of this machine that Ray may hand out: no more than CUDA_VISIBLE_DEVICES names, where it is set."""
    if not COUNT.holds(public):
        import torch

        return torch.cuda.device_count()
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    named = manager.get_current_process_visible_accelerator_ids()
    count = manager.get_current_node_num_accelerators()
    return count if named is None else min(count, len(named))
