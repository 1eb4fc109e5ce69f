"""Features that others have computed, opened to be imported."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.cache_assemble import BLOCK_BYTES
from featpipe.cache_layout import blocks
from featpipe.checksums import digest_blocks
from featpipe.errors import CacheError, FeatureValueError, SettingsError
from featpipe.table import Status
from featpipe.transfer_parquet import ListColumn

DTYPES = ("float32", "float16")


@dataclass(frozen=True, eq=False)
class ForeignArray:
    """Features that somebody else computed.

    Attributes
    ----------
    title : str
        For messages.
    shape : tuple of int
        (n, ...).
    dtype : numpy dtype
    read : callable
        ``read(start, stop)`` gives these rows.
    """

    title: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], np.ndarray]


def open_array(features: str | Path | np.ndarray) -> ForeignArray:
    """Open an array in memory, a ``.npy`` file, or a ``.parquet`` file with a column of lists.

    A ``.npy`` file is mapped, of a Parquet file one row group is held at a time.

    Raises
    ------
    SettingsError
        If the file has another suffix.
    CacheError
        If it is not there, or not what its suffix says.
    FeatureValueError
        If it does not hold numbers, of shape (n, ...).
    """
    if isinstance(features, np.ma.MaskedArray):
        raise FeatureValueError("The array is masked; import array.filled(numpy.nan).")
    if isinstance(features, np.ndarray):
        found = _of_array("the array", features)
    else:
        path = Path(features)
        openers = {".npy": _open_npy, ".parquet": _open_parquet}
        if path.suffix.lower() not in openers:
            raise SettingsError(
                f"{path} cannot be imported: features are read from {' and '.join(openers)} files."
            )
        if not path.is_file():
            raise CacheError(f"There is no file {path}.")
        found = openers[path.suffix.lower()](path)
    if found.dtype.kind not in "fiu":
        raise FeatureValueError(
            f"{found.title} holds {found.dtype}; features are floating-point numbers or integers."
        )
    if len(found.shape) < 2 or 0 in found.shape:
        raise FeatureValueError(
            f"{found.title} has the shape {found.shape}; features have the shape (rows, values) "
            "or (rows, ...), and at least one of each."
        )
    return found


def _of_array(title: str, array: np.ndarray) -> ForeignArray:
    return ForeignArray(title, array.shape, array.dtype, lambda start, stop: array[start:stop])


def _open_npy(path: Path) -> ForeignArray:
    if path.stat().st_size == 0:
        raise CacheError(f"{path} is empty.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # what is pickled can run anything
    except (ValueError, EOFError) as error:
        raise CacheError(
            f"{path} is not a whole .npy file of numbers: {error} Pickled objects are never "
            "loaded; save a plain array with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray):  # numpy goes by the content, whatever the name
        array.close()
        raise CacheError(f"{path} is an .npz archive; save one array with numpy.save.")
    return _of_array(str(path), array)


def _open_parquet(path: Path) -> ForeignArray:
    column = ListColumn(path)
    return ForeignArray(str(path), column.shape, column.dtype, column.read)


# ---- as they are stored ------------------------------------------------------------------


def stored_type(found: ForeignArray, asked: str | None) -> np.dtype[Any]:
    """The type to store features in: the one asked for, else their own if a cache can hold it."""
    if asked not in (None, *DTYPES):
        raise SettingsError(f"dtype is {asked!r}; it can be {' or '.join(DTYPES)}.")
    own = found.dtype.newbyteorder("=").name
    return np.dtype(asked or (own if own in DTYPES else "float32"))


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Foreign features as a cache stores them: of one type, NaN in all of a row without any.

    Attributes
    ----------
    found : ForeignArray
    ids, status, reasons : arrays, shape (n,)
        Of each row; status and reason of a row with NaN or infinity are set when it is read.
    layer : str
    dtype : numpy dtype
    """

    found: ForeignArray
    ids: np.ndarray
    status: np.ndarray
    reasons: np.ndarray
    layer: str
    dtype: np.dtype[Any]

    def read(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the one layer that there is.

        Raises
        ------
        FeatureValueError
            If a number is too large for the type, or a row without features has some.
        """
        block = self.found.read(start, stop).reshape(stop - start, *self.found.shape[1:])
        with np.errstate(over="ignore"):
            stored: np.ndarray = block.astype(self.dtype)
        finite = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        status, ok = self.status[start:stop], self.status[start:stop] == Status.OK
        for row in np.flatnonzero(finite & ~ok)[:1]:
            raise FeatureValueError(
                f"Row {start + row} ({self.ids[start + row]}) has features, and the table says "
                f"{Status(status[row]).title}. Make its features NaN, or its status ok."
            )
        for row in np.flatnonzero(finite & np.isinf(stored.reshape(len(block), -1)).any(axis=1))[
            :1
        ]:
            raise FeatureValueError(
                f"Row {start + row} ({self.ids[start + row]}) reaches "
                f"{np.abs(block[row]).max():g}, more than {self.dtype} holds "
                f"({np.finfo(self.dtype).max:g}). Import as float32, or scale the features."
            )
        status[~finite & ok] = Status.NOT_FINITE
        self.reasons[start:stop][~finite & ok] = f"{self.layer} has NaN or infinity"
        stored[~finite] = np.nan
        return stored

    def digest(self) -> str:
        """XXH3-128, hex, of all rows; having read them, every status is known."""
        rows, values = self.found.shape[0], math.prod(self.found.shape[1:])
        size = max(1, BLOCK_BYTES // (values * self.dtype.itemsize))
        parts = (self.read(self.layer, *part).tobytes() for part in blocks(rows, size))
        return digest_blocks(parts).hex()
