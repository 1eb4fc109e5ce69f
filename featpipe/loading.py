"""One image: read, checked to be the one that is meant, decoded, or the reason why not."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featpipe.checksums import digest_bytes
from featpipe.decode import Preprocessing, to_pixels
from featpipe.engines import LoadedImage
from featpipe.errors import DecodeError
from featpipe.images import ImageSource
from featpipe.table import Status

Decoder = Callable[[bytes, Preprocessing], np.ndarray]
SCAN_TASK = 32  # images that one thread digests in a row
MOST_LETTERS = 160  # of a reason
SLOW_SECONDS = 3e-4  # an image that takes longer to digest was waited for


def load_image(
    source: ImageSource,
    row: int,
    preprocessing: Preprocessing,
    decoder: Decoder = to_pixels,
    digest: bytes = b"",
) -> LoadedImage:
    """Read, decode and resize one image; what goes wrong becomes a status and a reason.

    With a `digest`, bytes that have another one are not used: the file has changed.
    """
    try:
        data = source.read(row)
        if digest and digest_bytes(data) != digest:
            return LoadedImage(None, Status.UNREADABLE, "changed while it was being extracted")
        return LoadedImage(decoder(data, preprocessing))
    except DecodeError as error:
        return LoadedImage(None, Status.UNDECODABLE, _short(str(error)))
    except MemoryError:  # may well succeed another time, so it is no property of the image
        return LoadedImage(None, Status.UNREADABLE, "not enough memory")
    except (OSError, ValueError) as error:
        return LoadedImage(None, *_read_status(error))


def scan(source: ImageSource, workers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digest every image's bytes.

    Returns
    -------
    digests : uint8 array, shape (n, 16)
        XXH3-128; zeros where the bytes could not be read.
    status : uint8 array, shape (n,)
    reasons : object array of str, shape (n,)
    """
    digests = np.zeros((len(source), 16), np.uint8)
    status = np.zeros(len(source), np.uint8)
    reasons = np.full(len(source), "", dtype=object)

    def digest(rows: range) -> None:
        for row in rows:
            try:
                found = source.digest(row)
            except (OSError, ValueError) as error:
                status[row], reasons[row] = _read_status(error)
            else:
                digests[row] = np.frombuffer(found, np.uint8)

    # Files that are at hand are digested faster than threads take turns at it; those on a slow
    # or distant disk are waited for together.
    at_hand, start, size = True, 0, SCAN_TASK
    with ThreadPoolExecutor(workers) as pool:
        while start < len(source):
            stop, begun = min(start + size, len(source)), time.perf_counter()
            if at_hand:
                digest(range(start, stop))
            else:
                tasks = range(start, stop, SCAN_TASK)
                list(pool.map(digest, (range(at, min(at + SCAN_TASK, stop)) for at in tasks)))
            each = (time.perf_counter() - begun) / (stop - start)
            at_hand = each * (1 if at_hand else workers) < SLOW_SECONDS
            start, size = stop, SCAN_TASK * (16 if at_hand else 4 * workers)
    return digests, status, reasons


def _read_status(error: OSError | ValueError) -> tuple[Status, str]:
    if isinstance(error, FileNotFoundError):
        return Status.MISSING, "no such file"
    return Status.UNREADABLE, _short(getattr(error, "strerror", None) or str(error))


def _short(reason: str) -> str:
    """A reason of at most so many letters: all rows have room for the longest."""
    return reason if len(reason) <= MOST_LETTERS else f"{reason[: MOST_LETTERS - 3]}..."
