"""Where computation runs, and the facts about this machine that belong beside a figure."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
