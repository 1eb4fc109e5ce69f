"""How much memory something took at its highest, and what that figure is worth."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
OF_THIS = (
    "highest resident memory of the process while this ran, interpreter and libraries included"
)
SO_FAR = (
    "highest resident memory of the process since it began: the system does not tell that of a part"
)
UNKNOWN = "not known: the system does not tell"


@dataclass
class Peak:
    """The highest memory within `measured`, once that is left.

    Attributes
    ----------
    resident : int or None
        Bytes of main memory.
    device : int
        Bytes that torch held on the accelerator.
    meaning : str
        What `resident` is.
    """

    resident: int | None = None
    device: int = 0
    meaning: str = UNKNOWN


@contextlib.contextmanager
def measured(device: str = "cpu") -> Iterator[Peak]:
    """Yield a `Peak` that is filled in on leaving."""
    peak, own, cuda = Peak(), _begin_anew(), device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield peak
    finally:
        peak.resident, peak.meaning = _highest(own)
        if cuda:
            peak.device = int(torch.cuda.max_memory_allocated(device))


def _begin_anew() -> bool:
    """Let Linux forget the highest so far; whether it did."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _highest(own: bool) -> tuple[int | None, str]:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1]), OF_THIS if own else SO_FAR
    try:
        import resource
    except ImportError:  # Windows
        return None, UNKNOWN
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024), SO_FAR
