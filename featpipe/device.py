"""Where computation runs, and the facts about this machine that belong beside a figure."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import joblib
import torch

from featpipe.errors import UnknownNameError


def choose_device(device: str) -> str:
    """Turn ``auto`` into the best device there is, and check any other.

    Raises
    ------
    UnknownNameError
        If the device is not known to torch, or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UnknownNameError(f"There is no device {device!r} here: {reason}") from error
    return device


def choose_double(device: str) -> str:
    """As `choose_device`, for what needs float64, which MPS does not have."""
    chosen = choose_device(device)
    return "cpu" if chosen.startswith("mps") else chosen


def available_cores() -> int:
    """Cores this process may use: those of its affinity mask and its cgroup's quota."""
    return int(joblib.cpu_count())


def memory_bytes() -> int:
    """Memory that this process may use; 8 GiB where the system does not say."""
    known = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not everywhere
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # a container's limit, or max
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(known, default=8 << 30)


def precisions(device: str) -> tuple[str, ...]:
    """What a device can compute in, the fastest first.

    bfloat16 comes first where the hardware multiplies it: AMX or AVX512-BF16, CUDA's tensor
    cores from Ampere on.
    """
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities() if device == "cpu" else {}
        fast = bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return ("bfloat16", "float16", "float32") if fast else ("float32", "bfloat16", "float16")


def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """Versions and hardware, as plain JSON values."""
    packages = ("featpipe", "torch", "torchvision", "numpy", "pillow", "scikit-learn", "h5py")
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "device": device,
        "versions": {name: _version(name) for name in packages},
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
