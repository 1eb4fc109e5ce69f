"""Parquet: a table with a column of lists of numbers, written and read."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import CacheError, FeatureValueError, MissingExtraError

COLUMN = "features"
SHAPE = "featpipe.shape"  # key of the schema's metadata: of one row, as JSON


def import_pyarrow(what: str) -> Any:
    """The package pyarrow, with its Parquet module.

    Raises
    ------
    MissingExtraError
        Without it, saying `what` needs it.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs pyarrow: pip install 'featpipe[parquet]'."
        ) from error
    return pyarrow


def write_lists(
    path: Path,
    columns: dict[str, list[str]],
    row: np.ndarray,
    blocks: Iterable[tuple[int, np.ndarray]],
    metadata: dict[str, str],
) -> None:
    """Write columns of text and one of features, each block as a row group.

    Parameters
    ----------
    path : Path
    columns : dict
    row : array
        Of the type and shape of one row.
    blocks : iterable
        First row, and features of shape (rows, ...), in order.
    metadata : dict
        Of the schema; the shape is added.
    """
    pyarrow = import_pyarrow(f"Writing {path}")
    lists = pyarrow.list_(pyarrow.from_numpy_dtype(row.dtype), row.size)
    schema = pyarrow.schema(
        [*((name, pyarrow.string()) for name in columns), (COLUMN, lists)],
        {**metadata, SHAPE: json.dumps(row.shape)},
    )
    # No two features are alike: a dictionary of them only takes room.
    with (
        path.open("wb") as file,  # pyarrow itself takes no name that is not UTF-8
        pyarrow.parquet.ParquetWriter(file, schema, use_dictionary=list(columns)) as writer,
    ):
        for start, features in blocks:
            held = [values[start : start + len(features)] for values in columns.values()]
            flat = pyarrow.array(features.reshape(-1))
            rows = pyarrow.FixedSizeListArray.from_arrays(flat, row.size)
            writer.write_table(pyarrow.table([*held, rows], schema=schema))


class ListColumn:
    """The column of lists in a Parquet file, of which one row group is held at a time."""

    def __init__(self, path: Path) -> None:
        self._path, self._pyarrow = path, import_pyarrow(f"Reading {path}")
        with self._open() as file:
            schema, groups = file.schema_arrow, range(file.metadata.num_row_groups)
            self._starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in groups)])
        numbers = self._numbers(schema)
        if numbers is None:
            raise CacheError(
                f"{path} has no column {COLUMN!r} of lists of numbers. It has: "
                + ", ".join(f"{field.name} ({field.type})" for field in schema)
            )
        self.dtype = np.dtype(numbers.to_pandas_dtype())
        self._width: int | None = None
        self._held = -1
        rows = int(self._starts[-1])
        flat = self.read(0, min(1, rows)).shape[1]
        self.shape = (rows, *_row_shape(schema.metadata or {}, flat))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with self._path.open("rb") as file:  # see write_lists
            try:
                read = self._pyarrow.parquet.ParquetFile(file)
            except self._pyarrow.ArrowException as error:
                raise CacheError(
                    f"{self._path} is not a Parquet file, or damaged: {error}"
                ) from error
            yield read

    def _numbers(self, schema: Any) -> Any:
        """Arrow's type of the numbers in the lists; None if there are none."""
        types = self._pyarrow.types
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
        if COLUMN not in schema.names or not any(test(schema.field(COLUMN).type) for test in lists):
            return None
        held = schema.field(COLUMN).type.value_type
        return held if types.is_floating(held) or types.is_integer(held) else None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, flat: shape (stop - start, values)."""
        parts = [np.zeros((0, self._width or 0), self.dtype)]
        for group in np.flatnonzero((self._starts[:-1] < stop) & (self._starts[1:] > start)):
            if group != self._held:
                self._rows, self._held = self._read_group(int(group)), int(group)
            first = self._starts[group]
            parts.append(self._rows[max(start - first, 0) : stop - first])
        return np.concatenate(parts[1:] or parts)

    def _read_group(self, group: int) -> np.ndarray:
        with self._open() as file:
            try:
                column = file.read_row_group(group, columns=[COLUMN]).column(COLUMN)
            except (self._pyarrow.ArrowException, OSError) as error:
                raise CacheError(f"{self._path} is damaged: {error}") from error
        lengths = self._pyarrow.compute.list_value_length(column).to_numpy()  # NaN for no list
        if self._width is None:
            self._width = int(np.nan_to_num(lengths[0]))
        for row in np.flatnonzero(lengths != self._width)[:1]:
            has = "no list" if np.isnan(lengths[row]) else f"{lengths[row]:g} numbers"
            raise FeatureValueError(
                f"{self._path} has {has} in {COLUMN!r} of row {self._starts[group] + row}, and "
                f"{self._width} numbers in the first; every row needs as many. Fill rows without "
                "features with NaN."
            )
        values: np.ndarray = self._pyarrow.compute.list_flatten(column).to_numpy()  # null is NaN
        return values.reshape(len(column), self._width)


def _row_shape(metadata: dict[bytes, bytes], width: int) -> tuple[int, ...]:
    """The shape of one row, where an export tells it; else it is flat."""
    try:
        shape = tuple(map(int, json.loads(metadata[SHAPE.encode()])))
    except (KeyError, ValueError, TypeError):
        return (width,)
    return shape if math.prod(shape) == width else (width,)
