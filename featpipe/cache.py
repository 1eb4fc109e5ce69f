"""The feature cache: reading finished files. `docs/cache-format.md` describes them.

This module, `featpipe.cache_parts` and `featpipe.cache_assemble` are the only ones that know
HDF5.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from featpipe.errors import CacheDamagedError, CacheError, LayerError
from featpipe.registry import no_such
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status, text_column

FORMAT = "featpipe-features"
FORMAT_VERSION = 1
TEXT = h5py.string_dtype("utf-8")


class FeatureCache:
    """Features of a table of images, with the Spec that made them. Never changes.

    Open one with `FeatureCache.open`; make one with `featpipe.extract_features`. A cache is
    its own context manager.

    Attributes
    ----------
    path : Path
    table : ImageTable
        Ids, labels, classes, splits and groups.
    spec : Spec
    conditions : dict
        Versions, machine, seconds of computing.
    status : int array, shape (n,)
        `Status` of each row.
    reasons : object array of str, shape (n,)
        Why a row has no features; empty where it has.
    digests : uint8 array, shape (n, 16)
        BLAKE2b-128 of each image's bytes; zeros where they could not be read.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        try:
            self._read_table()
        except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
            raise CacheDamagedError(f"{path} is not a complete feature cache: {error}") from error

    @classmethod
    def open(cls, path: str | Path) -> "FeatureCache":
        """Open a finished cache for reading.

        Raises
        ------
        CacheError
            If there is no such file.
        CacheDamagedError
            If it is not a feature cache, or one that contradicts itself.
        """
        path = Path(path)
        if not path.is_file():
            parts = parts_folder(path)
            hint = (
                f" An unfinished extraction lies in {parts}: run the same extract again."
                if parts.is_dir()
                else ""
            )
            raise CacheError(f"There is no feature cache {path}.{hint}")
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise CacheDamagedError(f"{path} is not an HDF5 file, or damaged: {error}") from error
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def _read_table(self) -> None:
        file = self._file
        if file.attrs.get("format") != FORMAT:
            raise CacheDamagedError(f"{self.path} is an HDF5 file, but not featpipe's.")
        version = int(file.attrs["format_version"])
        if version > FORMAT_VERSION:
            raise CacheDamagedError(
                f"{self.path} has format version {version}; this featpipe reads up to "
                f"{FORMAT_VERSION}. Install a newer featpipe."
            )
        self.spec = Spec.from_dict(json.loads(file.attrs["spec"]))
        self.conditions: dict[str, Any] = json.loads(file.attrs["conditions"])
        ids = read_text(file["ids"])
        self.table = ImageTable(
            ids,
            file["labels"][:] if "labels" in file else None,
            tuple(read_text(file["classes"])) if "classes" in file else (),
            read_text(file["splits"]) if "splits" in file else None,
            read_text(file["groups"]) if "groups" in file else None,
        )
        self.status: np.ndarray = file["status"][:]
        self.reasons = read_text(file["reasons"])
        self.digests: np.ndarray = file["digests"][:]
        lengths = {name: len(data) for name, data in file["features"].items()}
        lengths |= {name: len(file[name]) for name in ("status", "reasons", "digests")}
        wrong = {name: length for name, length in lengths.items() if length != len(ids)}
        if wrong or set(file["features"]) != set(self.spec.layers):
            raise CacheDamagedError(
                f"{self.path} contradicts itself: {len(ids)} ids, {wrong or 'layers'} differ."
            )

    def __len__(self) -> int:
        return len(self.table)

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._file.close()

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Layer name to the shape of one row."""
        return {name: self._file["features"][name].shape[1:] for name in self.spec.layers}

    @property
    def ok(self) -> np.ndarray:
        """Boolean array, shape (n,): which rows have features."""
        usable: np.ndarray = self.status == Status.OK
        return usable

    def status_counts(self) -> dict[str, int]:
        """Rows of each status, by its name in lower case."""
        names = {int(status): status.name.lower().replace("_", " ") for status in Status}
        values, counts = np.unique(self.status, return_counts=True)
        return {
            names.get(int(value), f"status {value}"): int(count)
            for value, count in zip(values, counts, strict=True)
        }

    def layer(self, name: str | None = None) -> str:
        """`name` if the cache holds that layer; without a name, its only layer.

        Raises
        ------
        LayerError
            If it does not, or there are several to choose from.
        """
        layers = list(self.spec.layers)
        if name is None and len(layers) == 1:
            return layers[0]
        if name is None:
            raise LayerError(f"{self.path} holds {', '.join(layers)}; say which with --layer.")
        if name not in layers:
            # A module's name means its last node, as at extraction.
            within = [layer for layer in layers if layer.startswith(f"{name}.")]
            if not within:
                raise LayerError(f"{self.path}: {no_such('layer', name, layers)}")
            return within[-1]
        return name

    def features(self, layer: str | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        """Features of one layer, as stored; rows without features are NaN.

        Parameters
        ----------
        layer : str
            May be left out if there is only one.
        rows : int array
            Row numbers in any order; all rows if left out.

        Returns
        -------
        float16 or float32 array, shape (rows, ...)
        """
        data = self._file["features"][self.layer(layer)]
        try:
            if rows is None:
                return data[:]  # type: ignore[no-any-return]
            return read_rows(data, np.asarray(rows))
        except OSError as error:
            raise CacheDamagedError(f"{self.path}: {data.name} is damaged: {error}") from error

    def blocks(
        self, layer: str | None = None, size: int = 4096
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``(first row, features)`` for consecutive blocks of at most `size` rows."""
        for start in range(0, len(self), size):
            yield start, self.features(layer, np.arange(start, min(start + size, len(self))))


def parts_folder(path: Path) -> Path:
    """The folder in which a cache is being built."""
    return path.with_name(path.name + ".parts")


def read_text(data: h5py.Dataset) -> np.ndarray:
    """A text dataset as an object array of str; bytes that are not UTF-8 survive."""
    return text_column(value.decode("utf-8", "surrogateescape") for value in data[:])


def read_rows(data: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows of a dataset in any order, read in ascending runs; HDF5's own lists are slow.

    (h5py issue 2536: hundreds of thousands of fancy indices take an hour.)
    """
    result = np.empty((len(rows), *data.shape[1:]), data.dtype)
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    span = max(1, (data.chunks or (256,))[0])
    start = 0
    while start < len(wanted):
        # All rows that lie in the same chunk, or follow without a gap, are one read.
        gaps = np.flatnonzero(np.diff(wanted[start:]) > span)
        stop = start + (int(gaps[0]) + 1 if len(gaps) else len(wanted) - start)
        stop = start + int(np.searchsorted(wanted[start:stop], wanted[start] + 64 * span))
        first, last = int(wanted[start]), int(wanted[stop - 1]) + 1
        result[order[start:stop]] = data[first:last][wanted[start:stop] - first]
        start = stop
    return result
