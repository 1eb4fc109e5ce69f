"""The feature cache: reading finished files. `docs/cache-format.md` describes them.

This module, `featpipe.cache_layout`, `featpipe.cache_parts` and `featpipe.cache_assemble` are
the only ones that know HDF5.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from featpipe.cache_layout import FEATURES, odd_columns, open_file, read_attribute, read_columns
from featpipe.cache_rows import Bytes, Damage, LayerReader
from featpipe.checksums import ALGORITHM
from featpipe.errors import (
    CacheDamagedError,
    CacheError,
    LayerError,
    MissingExtraError,
)
from featpipe.registry import no_such
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status, text_column

if TYPE_CHECKING:
    import pandas

    from featpipe.cache_torch import FeatureDataset

FORMAT = "featpipe-features"
FORMAT_VERSION = 2  # of files with several views an image; others have 1, as they always had
TABLE = ("ids", "labels", "classes", "splits", "groups")  # of no consequence to the features
MENDABLE = {*TABLE, "reasons", "@conditions"}


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
        XXH3-128 of each image's bytes; zeros where they could not be read.
    damaged : dict
        What of the table was damaged, with the reason; only after `salvage`.
    """

    def __init__(self, path: Path, file: h5py.File, salvaging: bool = False) -> None:
        self.path, self._file = path, file
        try:
            self._read(salvaging)
        except (CacheError, MemoryError):
            raise
        except Exception as error:  # nobody knows all that a strange file can lead to
            raise CacheDamagedError(f"{path} is not a complete feature cache: {error}") from error

    @classmethod
    def open(cls, path: str | Path) -> "FeatureCache":
        """Open a finished cache for reading.

        Everything but the features is read and checked at once; features are when they are
        read.

        Raises
        ------
        CacheError
            If there is no such file.
        CacheDamagedError
            If it is not a feature cache, leads out of its own file, or does not match its
            checksums.
        """
        return cls._open(Path(path), salvaging=False)

    @classmethod
    def salvage(cls, path: str | Path) -> "FeatureCache":
        """Open a cache whose table may be damaged, as long as its features can be told apart.

        Columns that are damaged are made up (ids from row numbers) or left out, and named in
        `damaged`.
        """
        return cls._open(Path(path), salvaging=True)

    @classmethod
    def _open(cls, path: Path, salvaging: bool) -> "FeatureCache":
        if not path.is_file():
            parts = parts_folder(path)
            hint = (
                f" An unfinished extraction lies in {parts}: run the same extract again."
                if parts.is_dir()
                else ""
            )
            raise CacheError(f"There is no feature cache {path}.{hint}")
        file = open_file(path)
        try:
            return cls(path, file, salvaging)
        except BaseException:
            file.close()
            raise

    def _read(self, salvaging: bool) -> None:
        file = self._file
        if "format" not in file.attrs or read_attribute(file, "format") != FORMAT:
            raise CacheDamagedError(f"{self.path} is an HDF5 file, but not featpipe's.")
        version = int(read_attribute(file, "format_version"))
        if version > FORMAT_VERSION:
            raise CacheDamagedError(
                f"{self.path} has format version {version}; this featpipe reads up to "
                f"{FORMAT_VERSION}. Install a newer featpipe."
            )
        if (algorithm := read_attribute(file, "digest_algorithm")) != ALGORITHM:
            raise CacheDamagedError(
                f"{self.path} has digests by {algorithm}, not by {ALGORITHM}. Extract again with "
                "--overwrite."
            )
        columns, wrong = read_columns(file)
        sums = {name for name in wrong if "/" in name}
        if set(wrong) - sums and not (salvaging and set(wrong) - sums <= MENDABLE):
            shown = "; ".join(f"{name} {why}" for name, why in sorted(wrong.items()))
            raise CacheDamagedError(
                f"{self.path} is damaged: {shown}. "
                + (
                    "Which row is which image cannot be told any more: pass --overwrite."
                    if set(wrong) - sums - MENDABLE
                    else "Its features may be whole: the extract that made it mends the table."
                )
            )
        self.damaged = wrong
        self.status: np.ndarray = columns["status"]
        self.digests: np.ndarray = columns["digests"]
        rows = len(self.status)
        self.reasons = columns.get("reasons", text_column([""] * rows))
        self.spec = Spec.from_dict(_read_json(read_attribute(file, "spec")))
        self.conditions: dict[str, Any] = (
            {} if "@conditions" in wrong else _read_json(read_attribute(file, "conditions"))
        )
        self._content = Bytes(file)
        views = self.spec.view_count
        if views > 1 and version == 1:
            raise CacheDamagedError(f"{self.path} has several views, and format version 1.")
        self._layers = {
            name: LayerReader.of_views(file, name, columns, self._content, views)
            for name in file[FEATURES]
        }
        odd = odd_columns(columns, "classes" not in wrong)
        odd += [
            name
            for name, (reader, *_) in self._layers.items()
            if len(reader) != rows or reader.data.dtype != self.spec.dtype
        ]
        if odd or set(self._layers) != set(self.spec.layers):
            raise CacheDamagedError(
                f"{self.path} contradicts itself: {', '.join(odd) or 'its layers'} cannot be right "
                f"for {rows} rows."
            )
        if wrong.keys() & TABLE:
            self.table = ImageTable(text_column(str(row) for row in range(rows)))
        else:
            self.table = ImageTable(
                columns["ids"],
                columns.get("labels"),
                tuple(columns.get("classes", ())),
                columns.get("splits"),
                columns.get("groups"),
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
        self._content.close()

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells this very file from one that has taken its name since."""
        return self._content.identity

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Layer name to the shape of one row, in one view."""
        return {name: self._layers[name][0].shape for name in self.spec.layers}

    @property
    def views(self) -> int:
        """Views of each image; 1 if there is only the plain one, which is always view 0."""
        return self.spec.view_count

    @property
    def ok(self) -> np.ndarray:
        """Boolean array, shape (n,): which rows have features."""
        usable: np.ndarray = self.status == Status.OK
        return usable

    def status_counts(self) -> dict[str, int]:
        """Rows of each status, by its name in lower case."""
        names = {int(status): status.title for status in Status}
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

    def features(
        self,
        layer: str | None = None,
        rows: np.ndarray | None = None,
        view: int | None = 0,
    ) -> np.ndarray:
        """Features of one layer, as stored and checked; rows without features are NaN.

        Parameters
        ----------
        layer : str
            May be left out if there is only one.
        rows : int or bool array
            Row numbers in any order, or a mask; all rows if left out.
        view : int or None
            The plain one if left out; None for all.

        Returns
        -------
        float16 or float32 array, shape (rows, ...); of all views (rows, views, ...)

        Raises
        ------
        CacheDamagedError
            If a row does not match its checksum.
        """
        readers = self._layers[self.layer(layer)]
        if view is None:
            first = self.features(layer, rows)
            result = np.empty((len(first), len(readers), *first.shape[1:]), first.dtype)
            for number in range(len(readers)):
                result[:, number] = self.features(layer, rows, number) if number else first
            return result
        if not 0 <= view < len(readers):
            raise IndexError(f"view {view} of {len(readers)}")
        reader = readers[view]
        if rows is None:
            return reader.read()
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape} for {len(self)} rows")
            rows = np.flatnonzero(rows)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)}")
        return reader.read(rows.astype(np.int64))

    def blocks(
        self, layer: str | None = None, size: int = 4096
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``(first row, plain features)`` for consecutive blocks of at most `size` rows."""
        for start in range(0, len(self), size):
            yield start, self.features(layer, np.arange(start, min(start + size, len(self))))

    def inspect(self, layer: str | None = None) -> Damage:
        """What is wrong with a layer; reads all of it, as featpipe and as other readers do."""
        found = [reader.inspect() for reader in self._layers[self.layer(layer)]]
        rows = np.unique(np.concatenate([damage.rows for damage in found]))
        return Damage(rows, any(damage.outside for damage in found))

    def to_dataframe(self) -> "pandas.DataFrame":
        """The table: id, label, split and group where there are, status, reason, digest.

        Raises
        ------
        MissingExtraError
            Without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError(
                "A DataFrame needs pandas: pip install 'featpipe[pandas]'."
            ) from error
        return pandas.DataFrame(self.columns())

    def columns(self) -> dict[str, list[str]]:
        """The table as columns of text, in the order in which they are exported."""
        table = self.table
        found: dict[str, list[str]] = {"id": table.ids.tolist()}
        if table.labels is not None:
            found["label"] = [table.classes[code] if code >= 0 else "" for code in table.labels]
        if table.splits is not None:
            found["split"] = table.splits.tolist()
        if table.groups is not None:
            found["group"] = table.groups.tolist()
        names = {int(status): status.title for status in Status}
        found["status"] = [names.get(int(value), f"status {value}") for value in self.status]
        found["reason"] = self.reasons.tolist()
        found["digest"] = [digest.tobytes().hex() for digest in self.digests]
        return found

    def dataset(self, layer: str | None = None, rows: np.ndarray | None = None) -> "FeatureDataset":
        """A torch ``Dataset`` of ``(plain features, label)``, for loaders with or without workers.

        Parameters
        ----------
        layer : str
            May be left out if there is only one.
        rows : int or bool array
            Which rows, in which order; all that have features if left out.
        """
        from featpipe.cache_torch import FeatureDataset

        chosen = self.ok if rows is None else np.asarray(rows)
        return FeatureDataset(
            FeatureCache.open,
            self.path,
            self.identity,
            self.layer(layer),
            np.flatnonzero(chosen) if chosen.dtype == bool else chosen,
            self.table.labels,
        )


def _read_json(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in its JSON")

    values = json.loads(text, parse_constant=refuse)
    if not isinstance(values, dict):
        raise ValueError(f"{text[:40]} in place of a JSON object")
    return values


def parts_folder(path: Path) -> Path:
    """The folder in which a cache is being built."""
    return path.parent / f"{path.name}.parts"
