"""Images: read, checked to be those that are meant, decoded, or the reason why not."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featpipe.augment import Views
from featpipe.checksums import digest_bytes
from featpipe.decode import EXACT, Decoder, Preprocessing
from featpipe.engines import LoadedImage, Read
from featpipe.errors import DecodeError
from featpipe.images import ImageSource
from featpipe.table import Status

SCAN_TASK = 32  # images that one thread digests in a row
MOST_LETTERS = 160  # of a reason
SLOW_SECONDS = 3e-4  # an image that takes longer to digest was waited for
# It may well succeed another time, so it is no property of the image.
_NO_MEMORY = LoadedImage(None, Status.UNREADABLE, "not enough memory")


@dataclass(frozen=True, eq=False)
class ImageLoader:
    """Reads and decodes images of a source; what goes wrong becomes a status and a reason.

    Attributes
    ----------
    source : ImageSource
    preprocessing : Preprocessing
    decoder : Decoder
    rows : int array, shape (items,), or None
        The source's row of each item, -1 if it is no longer there; None if items are rows.
    digests : uint8 array, shape (items, 16), or None
        Bytes that have another digest are not used: the file has changed.
    views : Views or None
        To be made of each image; its pixels then have them as their first axis. The plain one is
        as the decoder gives it, the others are of Pillow's picture whatever the decoder is.
    """

    source: ImageSource
    preprocessing: Preprocessing
    decoder: Decoder = EXACT
    rows: np.ndarray | None = None
    digests: np.ndarray | None = None
    views: Views | None = None

    @property
    def whole(self) -> bool:
        """Whether a batch is decoded faster by one call than by several."""
        return self.decoder.many is not None

    def __call__(self, items: Sequence[int]) -> list[LoadedImage]:
        """The images of some items."""
        if self.whole:
            return self.decode(self.read(items))
        # One image's bytes at a time need less memory.
        return [self._decoded(self._read(item)) for item in items]

    def read(self, items: Sequence[int]) -> list[Read]:
        """The bytes of each, or why there are none."""
        return [self._read(item) for item in items]

    def decode(self, found: Sequence[Read]) -> list[LoadedImage]:
        """The picture of each, or why there is none."""
        if self.decoder.many is None:
            return [self._decoded(one) for one in found]
        encoded = [one for one in found if isinstance(one, bytes)]
        pixels = iter(self.decoder.many(encoded, self.preprocessing))
        return [
            self._decoded(one, next(pixels)) if isinstance(one, bytes) else one for one in found
        ]

    def _read(self, item: int) -> Read:
        row = item if self.rows is None else int(self.rows[item])
        if row < 0:
            return LoadedImage(None, Status.MISSING, "no longer among the images")
        try:
            data = self.source.read(row)
        except MemoryError:
            return _NO_MEMORY
        except (OSError, ValueError) as error:
            return LoadedImage(None, *_read_status(error))
        if self.digests is not None and digest_bytes(data) != self.digests[item].tobytes():
            return LoadedImage(None, Status.UNREADABLE, "changed while it was being extracted")
        return data

    def _decoded(self, one: Read, pixels: np.ndarray | None = None) -> LoadedImage:
        """`pixels` if they are decoded already."""
        if isinstance(one, LoadedImage):
            return one
        try:
            if self.views is not None and self.decoder is EXACT:  # one decoding for all of them
                return LoadedImage(self.views.pixels(one))
            made = self.decoder.one(one, self.preprocessing) if pixels is None else pixels
            return LoadedImage(made if self.views is None else self.views.pixels(one, made))
        except DecodeError as error:
            return LoadedImage(None, Status.UNDECODABLE, _short(str(error)))
        except MemoryError:
            return _NO_MEMORY
        except (OSError, ValueError) as error:
            return LoadedImage(None, *_read_status(error))


def load_image(
    source: ImageSource, row: int, preprocessing: Preprocessing, decoder: Decoder = EXACT
) -> LoadedImage:
    """Read, decode and resize one image; what goes wrong becomes a status and a reason."""
    return ImageLoader(source, preprocessing, decoder)([row])[0]


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
