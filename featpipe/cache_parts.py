"""The immutable part files that a cache is built from."""

import io
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from featpipe.cache_layout import FEATURES, LIBVER, open_file, read_columns, write_columns
from featpipe.cache_rows import Bytes, LayerReader, LayerWriter
from featpipe.durable import placing
from featpipe.errors import CacheDamagedError


@dataclass(frozen=True, eq=False)
class Part:
    """Some computed rows, durable once they are here.

    Attributes
    ----------
    path : Path
    items : int array
        Positions in the work list.
    digests : uint8 array, shape (items, 16)
        What the work list has there: which images these are depends on no other file.
    status, reasons : arrays
        Of each item.
    seconds : float
        Spent on computing them.
    """

    path: Path
    items: np.ndarray
    digests: np.ndarray
    status: np.ndarray
    reasons: np.ndarray
    seconds: float

    @property
    def number(self) -> int:
        """Its place in the order in which parts were made; no two have the same."""
        return int(self.path.name.split("-")[1])

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Open a part and check all of it; its features are read when they are asked for.

        Raises
        ------
        CacheDamagedError
            If anything in it does not match its checksum.
        """
        with open_file(path) as file:
            try:
                columns, wrong = read_columns(file)
                for layer in file[FEATURES]:
                    damage = LayerReader.of(file, layer, columns, Bytes(file)).inspect()
                    if len(damage.rows) or damage.outside:
                        wrong[layer] = "does not match its checksums"
                if wrong:
                    raise CacheDamagedError(", ".join(f"{k} {v}" for k, v in wrong.items()))
                return cls(
                    path, columns["items"], columns["digests"], columns["status"],
                    columns["reasons"], float(file.attrs["seconds"]),
                )  # fmt: skip
            except Exception as error:  # nobody knows all that a strange file can lead to
                raise CacheDamagedError(f"{path} is damaged: {error}.") from error

    @classmethod
    def write(
        cls,
        path: Path,
        items: np.ndarray,
        digests: np.ndarray,
        status: np.ndarray,
        reasons: np.ndarray,
        features: dict[str, np.ndarray],
        seconds: float,
    ) -> "Part":
        """Make a part; when this returns, it is on the disk and has been read back."""
        # Built in memory, so that a full disk is Python's error and not one within HDF5.
        content = io.BytesIO()
        with h5py.File(content, "w", libver=LIBVER) as file:
            file.attrs["seconds"] = seconds
            for layer, rows in features.items():
                writer = LayerWriter(file, layer, rows.shape, rows.dtype)
                writer.write(rows)
                writer.close()
            columns = {"items": items, "digests": digests, "status": status, "reasons": reasons}
            write_columns(file, columns)
        with placing(path) as temporary:
            temporary.write_bytes(content.getbuffer())
            cls.read(temporary)
        return cls(path, items, digests, status, reasons, seconds)

    def features(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Features of one layer, of rows of this part."""
        with open_file(self.path) as file:
            columns, _ = read_columns(file)
            return LayerReader.of(file, layer, columns, Bytes(file)).read(rows)
