"""Putting the finished cache together from everything that holds rows of it."""

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featpipe.cache import FORMAT, FORMAT_VERSION, FeatureCache
from featpipe.cache_layout import LIBVER, as_attribute, blocks, write_columns
from featpipe.cache_rows import LayerWriter
from featpipe.cache_stock import Stock, digest_keys
from featpipe.checksums import ALGORITHM
from featpipe.durable import Deferred
from featpipe.errors import CacheDamagedError, CacheIncompleteError
from featpipe.layers import Shape
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status, text_column

BLOCK_BYTES = 8 << 20  # memory of this size is used again, and not had anew from the system


@dataclass(eq=False)
class Assembly:
    """What goes into a finished file.

    Attributes
    ----------
    path : Path
        Its final name, for messages.
    spec : Spec
    shapes : dict
        Layer name to the shape of one row.
    table : ImageTable
    digests, status, reasons : arrays, shape (n, ...)
        What reading each image gave; what computing it gave is added here.
    stock : Stock
        Where the rows are.
    """

    path: Path
    spec: Spec
    shapes: dict[str, Shape]
    table: ImageTable
    digests: np.ndarray
    status: np.ndarray
    reasons: np.ndarray
    stock: Stock

    def write(self, file_name: Path, conditions: dict[str, Any], begun: float) -> None:
        """Write the whole file, as `write_cache` does.

        Raises
        ------
        CacheIncompleteError
            If a row's features are nowhere.
        OSError
            If the disk is full.
        """
        self._locate()
        columns = table_columns(self.table, self.digests, self.status, self.reasons)
        write_cache(file_name, self.spec, self.shapes, columns, self._read, conditions, begun)

    def _locate(self) -> None:
        """Find the origin that has each row's features, and take over the status it gave."""
        readable = np.flatnonzero(self.status == Status.OK)
        self._origin = np.full(len(self.table), -1)
        self._row = np.zeros(len(self.table), np.int64)
        found = self.stock.find(digest_keys(self.digests[readable]))
        self._origin[readable], self._row[readable] = found
        lost = int((found[0] < 0).sum())
        if lost:
            raise CacheIncompleteError(
                f"{lost} of {len(self.table)} rows of {self.path} are still to be computed. Run "
                "the same extract again."
            )
        for number, origin in enumerate(self.stock.origins):
            here = np.flatnonzero(self._origin == number)
            self.status[here] = origin.status[self._row[here]]
            self.reasons[here] = origin.reasons[self._row[here]]

    def _read(self, layer: str, start: int, stop: int) -> np.ndarray:
        """Consecutive rows, from wherever each of them is."""
        numbers = np.unique(self._origin[start:stop])
        if len(numbers) == 1 and numbers[0] >= 0:  # as after one uninterrupted run
            alone: np.ndarray = self.stock.origins[numbers[0]].read(layer, self._row[start:stop])
            return alone
        shape = (stop - start, *self.shapes[layer])
        block = np.full(shape, np.nan, np.dtype(self.spec.dtype))
        for number in numbers:
            if number >= 0:
                here = np.flatnonzero(self._origin[start:stop] == number)
                origin = self.stock.origins[number]
                block[here] = origin.read(layer, self._row[start + here])
        return block


def write_cache(
    file_name: Path,
    spec: Spec,
    shapes: dict[str, Shape],
    columns: dict[str, np.ndarray],
    read: Callable[[str, int, int], np.ndarray],
    conditions: dict[str, Any],
    begun: float,
) -> None:
    """Write a finished file and read it back, which checks every chunk's checksum.

    Parameters
    ----------
    file_name : Path
    spec : Spec
    shapes : dict
        Layer name to the shape of one row; its first axis are the views, where there are several.
    columns : dict
        As `table_columns` makes them.
    read : callable
        ``read(layer, start, stop)`` gives the features of these rows, as they are stored; it is
        called in the order of the rows, for about 8 MiB at a time, by another thread.
    conditions : dict
        Stored with the seconds since `begun` (of `time.perf_counter`).

    Raises
    ------
    OSError
        If the disk is full.
    """
    stopped = threading.Event()

    def read_on(layer: str, start: int, stop: int) -> np.ndarray:
        if stopped.is_set():
            raise CacheIncompleteError(f"{file_name} was interrupted.")
        return read(layer, start, stop)

    # Ctrl-C reaches only the main thread, and HDF5 crashes when it is raised while it writes.
    with ThreadPoolExecutor(1, thread_name_prefix="featpipe-finish") as alone:
        writing = alone.submit(_write, file_name, spec, shapes, columns, read_on, conditions, begun)
        try:
            writing.result()
        except BaseException:
            stopped.set()
            raise


def _write(
    file_name: Path,
    spec: Spec,
    shapes: dict[str, Shape],
    columns: dict[str, np.ndarray],
    read: Callable[[str, int, int], np.ndarray],
    conditions: dict[str, Any],
    begun: float,
) -> None:
    with Deferred(file_name, "w+") as target:
        # HDF5 itself never meets an error of the disk: it can crash on one.
        with h5py.File(target, "w", libver=LIBVER) as file:
            for layer, shape in shapes.items():
                dtype, rows = np.dtype(spec.dtype), len(columns["ids"])
                writer = LayerWriter(file, layer, (rows, *shape), dtype, spec.view_count)
                chunk_bytes = writer.chunk * int(np.prod(shape)) * dtype.itemsize
                chunks = max(1, BLOCK_BYTES // max(1, chunk_bytes))
                spans = list(blocks(rows, chunks * writer.chunk))
                for block in _ahead(functools.partial(read, layer), spans):
                    writer.write(block)
                    target.check()
                writer.close()
            seconds = round(time.perf_counter() - begun, 3)
            conditions = {**conditions, "seconds": seconds}
            file.attrs["conditions"] = as_attribute(json.dumps(conditions))
            file.attrs["spec"] = as_attribute(json.dumps(spec.to_dict()))
            file.attrs["digest_algorithm"] = as_attribute(ALGORITHM)
            # Without views the file is as it always was, and read by every featpipe.
            file.attrs["format_version"] = FORMAT_VERSION if spec.views else 1
            file.attrs["format"] = as_attribute(FORMAT)
            write_columns(file, columns)
        target.check()
        os.fsync(target.fileno())
    with FeatureCache.open(file_name) as written:
        for layer in shapes:
            damage = written.inspect(layer)
            if len(damage.rows) or damage.outside:
                raise CacheDamagedError(f"{file_name} reads back otherwise than written.")


def _ahead(
    read: Callable[[int, int], np.ndarray], spans: list[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """Each span's rows, of which the next ones are read while one is written."""
    with ThreadPoolExecutor(1, thread_name_prefix="featpipe-read") as reader:
        coming = [reader.submit(read, *span) for span in spans[:1]]
        for following in [*spans[1:], None]:
            if not coming:
                return
            block = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(read, *following))
            yield block


def table_columns(
    table: ImageTable, digests: np.ndarray, status: np.ndarray, reasons: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of a finished file, by their names in it."""
    columns = {
        "ids": table.ids,
        "status": status.astype(np.uint8),
        "reasons": reasons,
        "digests": digests,
    }
    if table.labels is not None:
        columns |= {"labels": table.labels, "classes": text_column(table.classes)}
    for name in ("splits", "groups"):
        if getattr(table, name) is not None:
            columns[name] = getattr(table, name)
    return columns
