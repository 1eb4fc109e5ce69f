"""Who keeps whom waiting, and how fast each stage would be alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STAGES = ("decode", "forward", "write")


@dataclass(frozen=True)
class Ceilings:
    """Images a second of each stage alone, on everything it may use.

    Attributes
    ----------
    decode : float
        Reading, decoding and resizing, by all workers.
    forward : float
        Forward passes, in all lanes.
    shared : bool
        Whether both run on the same cores.
    """

    decode: float
    forward: float
    shared: bool

    @property
    def together(self) -> float:
        """What both allow: on the same cores their times add up, else the slower one counts."""
        if self.shared:
            return 1 / (1 / self.decode + 1 / self.forward)
        return min(self.decode, self.forward)


class Meter:
    """Adds up what each stage worked and was waited for; every thread may use it.

    Parameters
    ----------
    clock : callable
        Seconds.
    """

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self.workers = self.lanes = 1
        self.ceilings: Ceilings | None = None
        self.images = 0
        self._worked = dict.fromkeys(STAGES, 0.0)
        self._waited = dict.fromkeys(STAGES, 0.0)
        self._begun: float | None = None
        self._ended: float | None = None

    def begin(self, workers: int, lanes: int) -> None:
        """Start the clock: so many threads decode, so many run forward passes."""
        self.workers, self.lanes, self._begun = workers, lanes, self._clock()

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """Count the time within as a stage's work."""
        with self._adding(self._worked, stage):
            yield

    @contextmanager
    def waiting_for(self, stage: str) -> Iterator[None]:
        """Count the time within as spent on waiting for a stage."""
        with self._adding(self._waited, stage):
            yield

    @contextmanager
    def _adding(self, sums: dict[str, float], stage: str) -> Iterator[None]:
        begun = self._clock()
        try:
            yield
        finally:
            with self._lock:
                sums[stage] += self._clock() - begun

    def add(self, images: int) -> None:
        """Note images that are done."""
        self.images += images

    def end(self) -> None:
        """Stop the clock."""
        self._ended = self._clock()

    @property
    def seconds(self) -> float:
        """Since `begin`, until `end`."""
        if self._begun is None:
            return 0.0
        return (self._clock() if self._ended is None else self._ended) - self._begun

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds if self.seconds else 0.0

    def waits(self) -> dict[str, float]:
        """The share of the time that each stage kept the others waiting, from 0 to 1.

        Decode keeps the lanes waiting for pixels, write the batches that are computed; forward
        keeps the decoders idle, as far as it is not for the writer that they wait.
        """
        seconds = max(self.seconds, 1e-9)
        decode = self._waited["decode"] / (self.lanes * seconds)
        write = self._waited["write"] / seconds
        idle = 1 - self._worked["decode"] / (self.workers * seconds)
        shares = {"decode": decode, "forward": idle - write, "write": write}
        return {stage: min(max(share, 0.0), 1.0) for stage, share in shares.items()}

    @property
    def bound(self) -> str:
        """The stage that the others wait for most."""
        waits = self.waits()
        return max(STAGES, key=lambda stage: waits[stage])

    def report(self) -> dict[str, Any]:
        """Plain JSON values of the whole run."""
        wrote = self._worked["write"]
        found: dict[str, Any] = {
            "images_per_second": self.rate,
            "bound": self.bound,
            "waited_for": self.waits(),
            "alone": {"write": self.images / wrote if wrote else None},
        }
        if self.ceilings is not None:
            found["alone"] |= {"decode": self.ceilings.decode, "forward": self.ceilings.forward}
            found["ceiling"] = self.ceilings.together
        return found


def describe(report: dict[str, Any]) -> str:
    """One line of a `Meter.report`."""
    text = f"{report['images_per_second']:.1f} images/s, {report['bound']}-bound"
    if "ceiling" in report:
        share = report["images_per_second"] / report["ceiling"]
        text += f", {100 * share:.0f} % of its ceiling"
    waits = ", ".join(
        f"{stage} {100 * share:.0f} %" for stage, share in report["waited_for"].items()
    )
    alone = ", ".join(
        f"{stage} {report['alone'][stage]:,.0f}/s" for stage in STAGES if report["alone"].get(stage)
    )
    return f"{text} (waited for {waits}; alone {alone})"
