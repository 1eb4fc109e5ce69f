"""The immutable part files that a cache is built from."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featpipe.cache import TEXT, read_rows, read_text
from featpipe.durable import placing
from featpipe.errors import CacheDamagedError
from featpipe.layers import Shape
from featpipe.table import Status, text_column

CHUNK_BYTES = 1 << 20
SETTLED = (Status.OK, Status.UNDECODABLE, Status.NOT_FINITE)  # decided by the bytes alone


@dataclass(frozen=True, eq=False)
class Part:
    """Some computed rows, durable once they are here.

    Attributes
    ----------
    path : Path
    items : int array
        Positions in the work list.
    status, reasons : arrays
        Of each item.
    seconds : float
        Spent on computing them.
    """

    path: Path
    items: np.ndarray
    status: np.ndarray
    reasons: np.ndarray
    seconds: float

    @property
    def number(self) -> int:
        """Its place in the order in which parts were made; no two have the same."""
        return int(self.path.name.split("-")[1])

    @property
    def settled(self) -> np.ndarray:
        """Boolean array: which items need no further try."""
        return np.isin(self.status, SETTLED)

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Open a part; its features are read when they are asked for."""
        try:
            with h5py.File(path, "r") as file:
                return cls(
                    path, file["items"][:], file["status"][:], read_text(file["reasons"]),
                    float(file.attrs["seconds"]),
                )  # fmt: skip
        except (OSError, KeyError) as error:
            raise CacheDamagedError(f"{path} is damaged: {error}") from error

    @classmethod
    def write(
        cls,
        path: Path,
        items: np.ndarray,
        status: np.ndarray,
        reasons: np.ndarray,
        features: dict[str, np.ndarray],
        seconds: float,
    ) -> "Part":
        """Make a part; when this returns, it is on the disk and has been read back."""
        # Built in memory, so that a full disk is Python's error and not one within HDF5.
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            file.attrs["seconds"] = seconds
            file["items"] = items
            file["status"] = status
            create_text(file, "reasons", reasons)
            for layer, rows in features.items():
                create_features(file, layer, rows.shape, rows.dtype)[:] = rows
        with placing(path) as temporary:
            temporary.write_bytes(content.getbuffer())
            with h5py.File(temporary, "r") as file:
                for layer, rows in features.items():
                    if not np.array_equal(file["features"][layer][:], rows, equal_nan=True):
                        raise CacheDamagedError(f"{path} reads back otherwise than written.")
        return cls(path, items, status, reasons, seconds)

    def features(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Features of one layer, of rows of this part.

        Raises
        ------
        CacheDamagedError
            If a checksum is wrong; the part is taken away, so that it is computed again.
        """
        try:
            with h5py.File(self.path, "r") as file:
                return read_rows(file["features"][layer], rows)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            raise CacheDamagedError(
                f"{self.path} was damaged ({error}) and has been taken away. Run the same extract "
                "again: it computes only those rows."
            ) from error


def create_features(
    file: h5py.File, layer: str, shape: Shape, dtype: np.dtype[Any]
) -> h5py.Dataset:
    """An empty dataset for features, in checksummed chunks of about 1 MiB of whole rows."""
    row = int(np.prod(shape[1:])) * dtype.itemsize
    chunk = max(1, min(shape[0], CHUNK_BYTES // max(row, 1)))
    return file.require_group("features").create_dataset(
        layer, shape, dtype, chunks=(chunk, *shape[1:]), fletcher32=True
    )


def create_text(file: h5py.File, name: str, texts: Iterable[str]) -> None:
    """A dataset of UTF-8 texts; bytes of file names that are not UTF-8 stay as they are."""
    encoded = text_column(text.encode("utf-8", "surrogateescape") for text in texts)
    file.create_dataset(name, data=encoded, dtype=TEXT)


def digest_keys(digests: np.ndarray) -> np.ndarray:
    """Digests, uint8 of shape (n, 16), as one sortable value each."""
    return np.ascontiguousarray(digests).view("S16").reshape(-1)
