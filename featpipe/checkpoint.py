"""Where a training that was interrupted goes on.

A training that takes longer than seconds leaves what it has come to in a folder, now and then; the
same training, begun again with that folder, goes on from there and ends as it would have ended.
"""

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from featpipe.durable import placing

log = logging.getLogger(__name__)

SECONDS = 20.0  # between two savings
SHARE = 0.05  # of the time, at most, goes into saving


class Checkpoints:
    """Unfinished trainings in a folder, each in a file of its own.

    Parameters
    ----------
    folder : Path
        Made when the first is saved.
    identity : str
        Of the data and whatever else the trainings do not know of themselves.
    seconds : float
        Between two savings.
    """

    def __init__(self, folder: Path, identity: str = "", seconds: float = SECONDS) -> None:
        self._folder, self._identity, self._seconds = folder, identity, seconds
        self._next = time.monotonic() + seconds

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self._next

    def load(self, key: str) -> dict[str, Any] | None:
        """What the training of this key had come to; None if it has not begun."""
        file = self._file(key)
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file raises anything at all
            log.warning("%s cannot be read (%s); the training begins anew.", file, error)
            return None
        return state

    def save(self, key: str, state: dict[str, Any]) -> None:
        """Put it on disk; where that fails, say so and let the training go on."""
        begun = time.monotonic()
        file = self._file(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with placing(file) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            log.warning("The state of the training could not be saved in %s: %s.", file, error)
        spent = time.monotonic() - begun
        self._next = time.monotonic() + max(self._seconds, spent / SHARE)

    def clear(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, key: str) -> Path:
        digest = hashlib.blake2b(f"{self._identity}\n{key}".encode(), digest_size=12)
        return self._folder / f"{digest.hexdigest()}.pt"


_present: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


def present() -> Checkpoints | None:
    """Where trainings that run now may leave their state."""
    return _present.get()


@contextlib.contextmanager
def checkpointing(
    folder: Path, identity: str = "", seconds: float = SECONDS
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
