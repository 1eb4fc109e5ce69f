"""What a route came to on each fold, kept in files so that nothing is run twice."""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.checksums import DIGEST_BYTES, digest_bytes
from featpipe.durable import put

log = logging.getLogger(__name__)

FORMAT = 1  # of the files; what is in another one is run again


@dataclass(frozen=True, eq=False)
class Trial:
    """A route on one fold: trained, chosen among its candidates, scored.

    Attributes
    ----------
    proba : float array, shape (scored rows, classes)
        As the classifier gives them.
    selecting : float array, shape (selecting rows, classes)
        Likewise, of the rows that chose; they also calibrate.
    options : dict
        Of the candidate that was chosen.
    candidates : list of dict
        ``options`` and ``value`` of each, or a ``note`` why it could not be trained.
    seconds : float
        Training, choosing and predicting, of all candidates.
    epochs : int
        That the chosen one has seen; 0 without epochs.
    parameters : int or None
        Numbers trained, where that was counted.
    predict_seconds : float or None
        An image, from features or pixels.
    prepare_seconds : float
        Reading and decoding that belongs to this route alone.
    peak_bytes, peak_device_bytes : int or None
    peak_meaning : str
    resumed : bool
        Whether a training went on where it was interrupted; `seconds` are of all of it.
    curves : list of dict
    conditions : dict
    """

    proba: np.ndarray
    selecting: np.ndarray
    options: dict[str, Any]
    candidates: list[dict[str, Any]]
    seconds: float
    epochs: int = 0
    parameters: int | None = None
    predict_seconds: float | None = None
    prepare_seconds: float = 0.0
    peak_bytes: int | None = None
    peak_device_bytes: int = 0
    peak_meaning: str = ""
    resumed: bool = False
    curves: list[dict[str, float]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)


ARRAYS = ("proba", "selecting")


class Keeper:
    """A folder of trials, one file each, below a name that all that decides them makes.

    Parameters
    ----------
    folder : Path
        Of all routes.
    decides : mapping
        Plain JSON values; equal for what would come to the same.
    """

    def __init__(self, folder: Path, decides: Mapping[str, Any]) -> None:
        text = json.dumps([FORMAT, decides], sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12)
        self.digest = digest.hexdigest()
        self.folder = folder / self.digest

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def read(self, name: str) -> Trial | None:
        """A trial, None if it is not there or damaged."""
        try:
            content = _checked(self._file(name))
            with np.load(io.BytesIO(content), allow_pickle=False) as held:
                plain = json.loads(bytes(held["plain"]))
                return Trial(**{name: held[name] for name in ARRAYS}, **plain)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s): it is run again.", self._file(name), error)
            return None

    def write(self, name: str, trial: Trial) -> None:
        """Put a trial in its place, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {one.name: getattr(trial, one.name) for one in fields(trial)}
        arrays = {name: values.pop(name) for name in ARRAYS}
        plain = np.frombuffer(json.dumps(values).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, plain=plain)
        content = buffer.getvalue()
        put(self._file(name), digest_bytes(content) + content)

    def read_curve(self, name: str) -> list[dict[str, Any]] | None:
        """A label budget's curve, None if it is not there or damaged."""
        path = self.folder / f"{name}.curve"
        try:
            found: list[dict[str, Any]] = json.loads(_checked(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): it is run again.", path, error)
            return None
        return found

    def write_curve(self, name: str, points: list[dict[str, Any]]) -> None:
        """Put a label budget's curve in its place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(points).encode()
        put(self.folder / f"{name}.curve", digest_bytes(content) + content)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.trial"


def _checked(path: Path) -> bytes:
    """What follows the digest of a file."""
    content = path.read_bytes()
    if content[:DIGEST_BYTES] != digest_bytes(content[DIGEST_BYTES:]):
        raise ValueError("its checksum is another")
    return content[DIGEST_BYTES:]
