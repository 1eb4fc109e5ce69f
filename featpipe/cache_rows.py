"""How a layer's rows lie in HDF5: in chunks, with a checksum for each chunk and each row.

HDF5 itself checks chunks by Fletcher32, which is there for other readers and costs more than
reading does. Here the bytes are read past HDF5, from where it says that they lie, and checked
with XXH3, which costs a fifth of it.
"""

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h5py
import numpy as np

from featpipe.cache_layout import CHUNK_SUMS, FEATURES, ROW_SUMS
from featpipe.checksums import checksum, checksum_each
from featpipe.device import available_cores
from featpipe.errors import CacheDamagedError, CacheError

CHUNK_BYTES = 1 << 20
FLETCHER32, FLETCHER32_BYTES = 3, 4  # the filter's number in HDF5, and what it adds to a chunk
DTYPES = (np.dtype("<f4"), np.dtype("<f2"))
SEVERAL_THREADS = 32 << 20  # bytes from which reading in threads is worth starting them


class LayerWriter:
    """Writes one layer's rows in order, in checksummed chunks of about 1 MiB of whole rows.

    With several views, which are then the second axis of `shape`, a chunk holds rows of one of
    them: to read the plain view of all images is to read no other.
    """

    def __init__(
        self,
        file: h5py.File,
        layer: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        views: int = 1,
    ) -> None:
        self._views = views
        lead = (1,) if views > 1 else ()
        inside = (*lead, *shape[1 + len(lead) :])
        row = int(np.prod(inside)) * dtype.itemsize
        chunks = -(-shape[0] // max(1, CHUNK_BYTES // max(row, 1)))
        self.chunk = max(1, -(-shape[0] // max(1, chunks)))  # of one size, with little padding
        self._file, self._layer = file, layer
        self._data = file.require_group(FEATURES).create_dataset(
            layer, shape, dtype, chunks=(self.chunk, *inside), fletcher32=True
        )
        self._chunk_sums: list[list[int]] = []
        self._row_sums: list[np.ndarray] = []
        self._at = 0

    def write(self, rows: np.ndarray) -> None:
        """Append rows; but for the last time, a whole number of chunks."""
        rows = np.ascontiguousarray(rows)
        self._data[self._at : self._at + len(rows)] = rows
        self._at += len(rows)
        several = self._views > 1
        each = [np.ascontiguousarray(rows[:, v]) for v in range(self._views)] if several else [rows]
        for start in range(0, len(rows), self.chunk):
            self._chunk_sums.append([checksum(view[start : start + self.chunk]) for view in each])
        self._row_sums.append(np.stack([checksum_each(view) for view in each], axis=1))

    def close(self) -> None:
        """Write the checksums."""
        shape = (-1, self._views) if self._views > 1 else (-1,)
        sums = np.array(self._chunk_sums, np.uint64).reshape(shape)
        self._file.require_group(CHUNK_SUMS).create_dataset(self._layer, data=sums)
        none = np.zeros((0, self._views), np.uint64)
        each = np.concatenate([none, *self._row_sums]).reshape(shape)
        self._file.require_group(ROW_SUMS).create_dataset(self._layer, data=each)


@dataclass(frozen=True, eq=False)
class Damage:
    """What is wrong with a layer.

    Attributes
    ----------
    rows : int array
        Numbers of the rows that do not match their checksum.
    outside : bool
        Whether something else is damaged: the padding of a chunk, or HDF5's own checksum, at
        which other readers would stop.
    """

    rows: np.ndarray
    outside: bool


class Bytes:
    """Reads anywhere in an open file, from any thread, until it is closed."""

    def __init__(self, file: h5py.File) -> None:
        # The same file even if another has taken its name meanwhile.
        shared = os.name == "posix"
        handle = os.dup(file.id.get_vfd_handle()) if shared else os.open(file.filename, os.O_RDONLY)
        self.name, self._handle = file.filename, handle
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, os.close, handle)
        found = os.fstat(handle)
        self.identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def close(self) -> None:
        """Close it; nothing can be read afterwards."""
        self._close()

    def read(self, offset: int, into: np.ndarray) -> bool:
        """Fill an array of bytes; return whether the file has so many."""
        if not self._close.alive:
            raise CacheError(f"{self.name} has been closed.")
        view, done = memoryview(into.data), 0
        while done < len(view):
            try:
                count = self._read(offset + done, view[done:])
            except OSError:  # a bad sector is damage like any other
                return False
            if not count:
                return False
            done += count
        return True

    def _read(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [view], offset)
        with self._lock:
            os.lseek(self._handle, offset, os.SEEK_SET)
            found = os.read(self._handle, len(view))
        view[: len(found)] = found
        return len(found)


@dataclass(frozen=True, eq=False)
class LayerReader:
    """Reads one layer's rows, or those of one of several views, all of them checked.

    Attributes
    ----------
    data : Dataset
    content : Bytes
    chunk_sums, row_sums : uint64 arrays, or None
        None where a checksum itself is damaged; one of them is enough.
    view : int or None
        None where there is but one, and no axis for it.
    """

    data: h5py.Dataset
    content: Bytes
    chunk_sums: np.ndarray | None
    row_sums: np.ndarray | None
    view: int | None = None

    @classmethod
    def of(
        cls, file: h5py.File, layer: str, columns: dict[str, np.ndarray], content: Bytes
    ) -> "LayerReader":
        """The reader of a layer, whose checksums are among the file's columns."""
        (reader,) = cls.of_views(file, layer, columns, content, 1)
        return reader

    @classmethod
    def of_views(
        cls, file: h5py.File, layer: str, columns: dict[str, np.ndarray], content: Bytes, views: int
    ) -> list["LayerReader"]:
        """A reader for each of a layer's views."""
        data, several = file[FEATURES][layer], views > 1
        chunk, row = columns.get(f"{CHUNK_SUMS}/{layer}"), columns.get(f"{ROW_SUMS}/{layer}")
        shape, chunks = data.shape, data.chunks
        if several and shape[1:2] != (views,):
            raise CacheDamagedError(f"{data.name} has the shape {shape}, not {views} views a row.")
        inside = (1, *shape[2:]) if several else shape[1:]
        # A chunk larger than all rows would claim memory that nothing in the file accounts for.
        whole = chunks and chunks[1:] == inside and chunks[0] <= max(1, shape[0])
        if data.dtype not in DTYPES or not whole:
            raise CacheDamagedError(f"{data.name} has {data.dtype} in chunks of {data.chunks}.")
        filters = data.id.get_create_plist()
        kinds = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
        each = (views,) if several else ()
        proofs = [(chunk, -(-shape[0] // chunks[0])), (row, shape[0])]
        fits = [
            sums.shape == (n, *each) and sums.dtype == np.uint64
            for sums, n in proofs
            if sums is not None
        ]
        if kinds != [FLETCHER32] or not fits or not all(fits):
            raise CacheDamagedError(f"{data.name} is not covered by checksums.")
        if not several:
            return [cls(data, content, chunk, row)]

        def of_view(sums: np.ndarray | None, view: int) -> np.ndarray | None:
            return None if sums is None else np.ascontiguousarray(sums[:, view])

        return [
            cls(data, content, of_view(chunk, view), of_view(row, view), view)
            for view in range(views)
        ]

    def __len__(self) -> int:
        return int(self.data.shape[0])

    @property
    def chunk(self) -> int:
        """Rows of a chunk."""
        return int(self.data.chunks[0])

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-len(self) // self.chunk)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row, in one view."""
        shape: tuple[int, ...] = self.data.shape
        return shape[1:] if self.view is None else shape[2:]

    @cached_property
    def _row_bytes(self) -> int:
        return int(np.prod(self.shape)) * int(self.data.dtype.itemsize)

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Where each chunk begins in the file; -1 where there is none as it ought to be."""
        offsets = np.full(self.chunks, -1, np.int64)
        size = self.chunk * self._row_bytes + FLETCHER32_BYTES

        def note(info: Any) -> None:
            mine = self.view is None or info.chunk_offset[1] == self.view
            if mine and info.size == size and info.filter_mask == 0:
                offsets[info.chunk_offset[0] // self.chunk] = info.byte_offset

        try:
            self.data.id.chunk_iter(note)
        except (OSError, RuntimeError, IndexError) as error:
            raise CacheDamagedError(f"{self.data.name} has no readable index: {error}") from error
        return offsets

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Rows in any order, or all of them.

        Raises
        ------
        CacheDamagedError
            If a row does not match its checksum.
        """
        if rows is None:
            return self._read_all()
        result = np.empty((len(rows), *self.shape), self.data.dtype)
        flat = self._flat(result)
        order = np.argsort(rows, kind="stable")
        chunks = rows[order] // self.chunk
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=False):
            number, places = int(chunks[start]), order[start:stop]
            inside = rows[places] - number * self.chunk
            if self.row_sums is not None and 4 * len(inside) <= self.chunk:
                self._read_single(number, inside, places, flat)
                continue
            content = np.empty((self._rows_of(number), self._row_bytes), np.uint8)
            good = self._read_chunk(number, content)
            if not good[inside].all():
                raise self._damaged(number * self.chunk + inside[~good[inside]])
            flat[places] = content[inside]
        return result

    def _read_single(
        self, number: int, inside: np.ndarray, places: np.ndarray, flat: np.ndarray
    ) -> None:
        """A few rows of a chunk, one by one."""
        assert self.row_sums is not None
        first, offset = number * self.chunk, int(self._offsets[number])
        for row, place in zip(inside.tolist(), places.tolist(), strict=True):
            line = flat[place]
            there = offset >= 0 and self.content.read(offset + row * self._row_bytes, line)
            if not there or checksum(line) != int(self.row_sums[first + row]):
                raise self._damaged(np.array([first + row]))

    def _read_all(self) -> np.ndarray:
        result = np.empty((len(self), *self.shape), self.data.dtype)
        flat = self._flat(result)

        def read(numbers: range) -> None:
            for number in numbers:
                first = number * self.chunk
                good = self._read_chunk(number, flat[first : first + self.chunk])
                if not good.all():
                    raise self._damaged(first + np.flatnonzero(~good))

        workers = min(available_cores(), 4) if result.nbytes >= SEVERAL_THREADS else 1
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(read, [range(at, self.chunks, workers) for at in range(workers)]))
        return result

    def inspect(self) -> Damage:
        """Find all damage there is; reads everything twice, as featpipe and as others do."""
        bad = [np.zeros(0, np.int64)]
        outside = False
        content = np.empty((self.chunk, self._row_bytes), np.uint8)
        for number in range(self.chunks):
            first = number * self.chunk
            good = self._read_chunk(number, content[: self._rows_of(number)])
            bad.append(first + np.flatnonzero(~good))
            if good.all():
                try:
                    some = slice(first, first + self.chunk)
                    self.data[some if self.view is None else (some, self.view)]
                except OSError:
                    outside = True
        return Damage(np.concatenate(bad), outside)

    def _flat(self, rows: np.ndarray) -> np.ndarray:
        lines: np.ndarray = rows.reshape(len(rows), self._row_bytes // rows.itemsize)
        return lines.view(np.uint8)

    def _rows_of(self, number: int) -> int:
        return min(self.chunk, len(self) - number * self.chunk)

    def _read_chunk(self, number: int, into: np.ndarray) -> np.ndarray:
        """Fill `into`, bytes of shape (rows, row bytes), and say which of its rows are right."""
        offset = int(self._offsets[number])
        if offset < 0 or not self.content.read(offset, into.reshape(-1)):
            return np.zeros(len(into), bool)
        if self.chunk_sums is not None and checksum(into) == int(self.chunk_sums[number]):
            return np.ones(len(into), bool)
        if self.row_sums is None:
            return np.zeros(len(into), bool)
        first = number * self.chunk
        good: np.ndarray = checksum_each(into) == self.row_sums[first : first + len(into)]
        return good

    def _damaged(self, rows: np.ndarray) -> CacheDamagedError:
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        return CacheDamagedError(
            f"{self.content.name}: {len(rows)} rows of {self.data.name} do not match their "
            f"checksums ({shown}). `featpipe verify` lists what is damaged; the extract that made "
            "the file computes just that again."
        )
