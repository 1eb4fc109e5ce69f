"""Where a training that was interrupted goes on.

A training that takes longer than seconds leaves what it has come to in a folder, now and then; the
same training, begun again with that folder, goes on from there and ends as it would have ended.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from featpipe.checksums import DIGEST_BYTES, digest_blocks
from featpipe.durable import placing

log = logging.getLogger(__name__)

SECONDS = 20.0  # between two savings
SHARE = 0.05  # of the time, at most, goes into saving
BLOCK = 1 << 20  # bytes read at once


_own: dict[Path, set[Path]] = {}


class Checkpoints:
    """Unfinished trainings in a folder, each in a file of its own.

    Parameters
    ----------
    folder : Path
        Made when the first is saved.
    identity : str
        Of the data and whatever else the trainings do not know of themselves.
    seconds : float or None
        Between two savings, `SECONDS` if None; 0 saves after every step, whatever it costs.

    Attributes
    ----------
    resumed : bool
        Whether a training has gone on from what was here.
    carried : float
        Seconds that trainings which went on had taken before they were interrupted.
    identity : str
        See `about`, too.
    """

    resumed = False
    carried = 0.0

    def __init__(self, folder: Path, identity: str = "", seconds: float | None = None) -> None:
        self._folder, self.identity = folder, identity
        # What this process has found or left there, through whichever instance.
        self._own = _own.setdefault(folder.absolute(), set())
        self._seconds = SECONDS if seconds is None else seconds
        self._next = time.monotonic() + self._seconds
        self._warned = False

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self._next

    def load(self, key: str) -> dict[str, Any] | None:
        """What the training of this key had come to; None if it has not begun."""
        path = self._file(key)
        try:
            with path.open("rb") as file:
                # torch's own reader does not look at the checksums of its format.
                if file.read(DIGEST_BYTES) != _digest(file):
                    raise ValueError("its checksum is another")
                file.seek(DIGEST_BYTES)
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file raises anything at all
            log.warning("%s cannot be read (%s); the training begins anew.", path, error)
            return None
        self.resumed = True
        self.carried += float(state.get("seconds", 0.0))
        self._own.add(path)
        log.info("Going on with the training that was interrupted.")
        return state

    def save(self, key: str, state: dict[str, Any]) -> None:
        """Put it on disk; where that fails, say so and let the training go on."""
        begun = time.monotonic()
        path = self._file(key)
        self._own.add(path)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob(f".{path.name}.*.tmp"):  # by one that was killed
                left.unlink(missing_ok=True)
            with placing(path) as temporary, temporary.open("wb+") as file:
                file.write(bytes(DIGEST_BYTES))
                torch.save(state, file)
                file.seek(DIGEST_BYTES)
                digest = _digest(file)
                file.seek(0)
                file.write(digest)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            if not self._warned:
                log.warning("The state of the training cannot be saved: %s.", error)
            self._warned = True
        spent = time.monotonic() - begun
        wait = max(self._seconds, spent / SHARE) if self._seconds else 0.0
        self._next = time.monotonic() + wait

    def clear(self) -> None:
        """Take these trainings away, and the folder if nothing else is in it.

        What other trainings have left there, with other options, stays for them.
        """
        with contextlib.suppress(OSError):
            for file in self._own:
                file.unlink(missing_ok=True)
                for left in self._folder.glob(f".{file.name}.*.tmp"):
                    left.unlink(missing_ok=True)
            self._folder.rmdir()

    def _file(self, key: str) -> Path:
        digest = hashlib.blake2b(
            f"{self.identity}\n{key}".encode(errors="surrogateescape"), digest_size=12
        )
        return self._folder / f"{digest.hexdigest()}.pt"


def _digest(file: BinaryIO) -> bytes:
    """Of all that follows in a file."""
    return digest_blocks(iter(lambda: file.read(BLOCK), b""))


_present: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


def present() -> Checkpoints | None:
    """Where trainings that run now may leave their state."""
    return _present.get()


def clock() -> float:
    """Seconds, of which differences count what an interrupted training had taken, too."""
    opened = _present.get()
    return time.perf_counter() + (opened.carried if opened else 0.0)


@contextlib.contextmanager
def checkpointing(
    folder: Path, identity: str = "", seconds: float | None = None
) -> Iterator[Checkpoints]:
    """Let every training within keep its state in a folder, and go on from it.

    When all that was trained is saved elsewhere, `Checkpoints.clear` takes the folder away.
    """
    opened = Checkpoints(folder, identity, seconds)
    token = _present.set(opened)
    try:
        yield opened
    finally:
        _present.reset(token)


@contextlib.contextmanager
def about(*what: Any) -> Iterator[None]:
    """Tell the trainings within apart by something that they do not know of themselves.

    Parameters
    ----------
    *what
        Of which rows their features are, of which layer, how they were changed: arrays, or
        anything whose ``repr`` says it.
    """
    opened = _present.get()
    if opened is None:
        yield
        return
    before, digest = opened.identity, hashlib.blake2b(digest_size=16)
    digest.update(before.encode(errors="surrogateescape"))
    for one in what:
        told = (
            one.tobytes() if isinstance(one, np.ndarray) else repr(one).encode("utf-8", "replace")
        )
        digest.update(f"{len(told)} ".encode() + told)
    opened.identity = digest.hexdigest()
    try:
        yield
    finally:
        opened.identity = before
