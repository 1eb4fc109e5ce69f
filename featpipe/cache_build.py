"""Building a feature cache: immutable parts first, then one file, each put in place whole.

Rows are found by the digest of their image's bytes, so that whatever was already computed
under the same Spec is used again wherever its image now lies. What is still to be computed
is a work list of digests that only ever grows; batches are fixed stretches of it, so that a
row is computed in the same company however often the run was interrupted.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock, Timeout

from featpipe.cache import (
    FORMAT,
    FORMAT_VERSION,
    TEXT,
    FeatureCache,
    parts_folder,
    read_rows,
    read_text,
)
from featpipe.engines import Batch
from featpipe.errors import (
    CacheDamagedError,
    CacheError,
    CacheIncompleteError,
    DiskSpaceError,
    FeatureValueError,
    SpecMismatchError,
)
from featpipe.layers import Shape
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status, text_column

PART_ROWS = 256  # at most this many computed rows are lost with the process
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 32 << 20
NO_DIGEST = np.zeros(16, np.uint8)
SETTLED = (Status.OK, Status.UNDECODABLE, Status.NOT_FINITE)  # decided by the bytes alone


class CacheBuilder:
    """Collects computed rows on disk until no row is missing.

    Parameters
    ----------
    path : Path
        The finished file's name; parts lie in ``<path>.parts`` beside it.
    spec : Spec
    shapes : dict
        Layer name to the shape of one row.
    table : ImageTable
    digests : uint8 array, shape (n, 16)
        Of each row's image; zeros where it could not be read.
    status, reasons : arrays, shape (n,)
        What reading each image gave.
    batch_size : int
        Kept as it was begun when a run is resumed.
    overwrite : bool
        Use nothing of what is there.

    Raises
    ------
    SpecMismatchError
        If what is there was made with other settings.
    CacheError
        If another process is writing to the same file.
    DiskSpaceError
        If the features would not fit.
    """

    def __init__(
        self,
        path: Path,
        spec: Spec,
        shapes: dict[str, Shape],
        table: ImageTable,
        digests: np.ndarray,
        status: np.ndarray,
        reasons: np.ndarray,
        batch_size: int,
        overwrite: bool = False,
    ) -> None:
        self.path, self.spec, self.shapes, self.table = path, spec, shapes, table
        self._digests, self._status, self._reasons = digests, status.copy(), reasons.copy()
        self._folder = parts_folder(path)
        self._stack = ExitStack()
        self._buffer: list[Batch] = []
        self._since = time.perf_counter()
        try:
            self._old = self._open_old(overwrite)
            self._lock(overwrite)
            self.batch_size = self._open_build(batch_size)
            self._index()
            self._check_space()
        except BaseException:
            self.close()
            raise

    # ---- what is there -------------------------------------------------------------------

    def _open_old(self, overwrite: bool) -> FeatureCache | None:
        if overwrite or not self.path.exists():
            return None
        old = self._stack.enter_context(FeatureCache.open(self.path))
        self._refuse_other_spec(old.spec, str(self.path))
        return old

    def _refuse_other_spec(self, found: Spec, where: str) -> None:
        differences = found.differences(self.spec)
        if differences:
            raise SpecMismatchError(
                f"{where} was extracted with different settings:\n  "
                + "\n  ".join(differences)
                + "\nExtract to another --out, or pass --overwrite."
            )

    def _lock(self, overwrite: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CacheError(f"Another process is extracting to {self.path}.") from None
        self._stack.callback(lock.release)
        if overwrite:
            for file in self._folder.iterdir():
                if file.name != "lock":
                    file.unlink()

    def _open_build(self, batch_size: int) -> int:
        state = self._folder / "build.json"
        if state.exists():
            begun = json.loads(state.read_text(encoding="utf-8"))
            self._refuse_other_spec(Spec.from_dict(begun["spec"]), f"An unfinished {self.path}")
            return int(begun["batch_size"])
        begun = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "batch_size": batch_size,
        }
        _put(state, json.dumps(begun, indent=1).encode())
        return batch_size

    def _index(self) -> None:
        """Find each row's features: in the old file, in a part, or still to be computed."""
        work_file = self._folder / "work.bin"
        stored = work_file.read_bytes() if work_file.exists() else b""
        work = np.frombuffer(stored, np.uint8).reshape(-1, 16)
        self.seconds = 0.0
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._parts: list[Path] = []
        for number, part in enumerate(sorted(self._folder.glob("part-*.h5"))):
            with h5py.File(part, "r") as file:
                items, state = file["items"][:], file["status"][:]
                self.seconds += float(file.attrs["seconds"])
            self._parts.append(part)
            parts.append((items, state, np.full(len(items), number)))
        done = np.zeros(len(work), bool)
        for items, state, _ in parts:
            done[items[np.isin(state, SETTLED)]] = True

        wanted = np.unique(_keys(self._digests[self._status == Status.OK]))
        known = _keys(work[done])
        if self._old is not None:
            settled = np.isin(self._old.status, SETTLED)
            known = np.concatenate([known, _keys(self._old.digests[settled])])
        missing = wanted[~np.isin(wanted, known)]
        # New images join the work list in the order of their first row, on a fresh batch.
        fresh = ~np.isin(missing, _keys(work))
        firsts = self._first_rows(missing[fresh])
        added = self._digests[np.sort(firsts)]
        if len(added):
            gap = -len(work) % self.batch_size
            work = np.concatenate([work, np.tile(NO_DIGEST, (gap, 1)), added])
            done = np.concatenate([done, np.zeros(gap + len(added), bool)])
            _put(work_file, work.tobytes())
        self.work = work
        needed = np.isin(_keys(work), missing) & ~done
        size = self.batch_size
        starts = np.unique(np.flatnonzero(needed) // size) * size
        self._batches = [list(range(start, min(start + size, len(work)))) for start in starts]
        self.pending = int(needed.sum())
        self.reused = int((self._status == Status.OK).sum()) - int(
            np.isin(_keys(self._digests), missing).sum()
        )

    def _first_rows(self, keys: np.ndarray) -> np.ndarray:
        own, first = np.unique(_keys(self._digests), return_index=True)
        rows: np.ndarray = first[np.searchsorted(own, keys)]
        return rows

    def _check_space(self) -> None:
        if not self.changed:
            return
        row = sum(int(np.prod(shape)) for shape in self.shapes.values())
        row *= np.dtype(self.spec.dtype).itemsize
        need = row * (self.pending + len(self.table))
        free = shutil.disk_usage(self._folder).free
        if need > free:
            raise DiskSpaceError(
                f"{self.path} needs about {need / 1e9:.2f} GB while it is being built "
                f"({row:,} bytes a row); {free / 1e9:.2f} GB are free. Use another --out, "
                "--dtype float16, --pool avg, or an earlier layer with fewer values."
            )

    @property
    def changed(self) -> bool:
        """Whether the finished file is not there, or not that of these images."""
        old = self._old
        return not (
            old is not None
            and np.array_equal(old.digests, self._digests)
            and np.array_equal(old.table.ids, self.table.ids)
            and old.table.classes == self.table.classes
            and all(
                np.array_equal(getattr(old.table, name), getattr(self.table, name))
                for name in ("labels", "splits", "groups")
            )
        )

    def start_clock(self, begun: float) -> None:
        """Count seconds from `begun` (of `time.perf_counter`), so that set-up is included."""
        self._since = begun

    # ---- computing -----------------------------------------------------------------------

    def batches(self) -> Iterator[list[int]]:
        """Batches of work items that still have to be computed."""
        return iter(self._batches)

    def rows_of_work(self) -> np.ndarray:
        """For each work item, the first table row with its image; -1 where there is none."""
        own, first = np.unique(_keys(self._digests), return_index=True)
        at = np.minimum(np.searchsorted(own, _keys(self.work)), len(own) - 1)
        found = (own[at] == _keys(self.work)) & self.work.any(axis=1)
        rows: np.ndarray = np.where(found, first[at], -1)
        return rows

    def write(self, batch: Batch) -> None:
        """Take one batch's features; at the latest every 256 rows they are made durable."""
        self._buffer.append(batch)
        if sum(len(held.items) for held in self._buffer) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Make everything taken so far durable, as one immutable part file."""
        if not self._buffer:
            return
        items = np.concatenate([batch.items for batch in self._buffer])
        images = [image for batch in self._buffer for image in batch.images]
        status = np.array([image.status for image in images], np.uint8)
        reasons = [image.reason for image in images]
        features = {}
        for layer, shape in self.shapes.items():
            rows = np.concatenate(
                [
                    batch.features.get(layer, np.full((len(batch.items), *shape), np.nan))
                    for batch in self._buffer
                ]
            ).astype(np.float32)
            finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
            for row in np.flatnonzero(~finite & (status == Status.OK)):
                status[row], reasons[row] = Status.NOT_FINITE, f"{layer} has NaN or infinity"
            features[layer] = rows
        for layer, rows in features.items():
            rows[status != Status.OK] = np.nan
            features[layer] = self._stored(layer, rows)
        now = time.perf_counter()
        part = self._folder / f"part-{items[0]:012d}-{items[-1]:012d}.h5"
        with _placing(part) as temporary:
            with h5py.File(temporary, "w") as file:
                file.attrs["seconds"] = now - self._since
                file["items"] = items
                file["status"] = status
                file.create_dataset("reasons", data=_encode(reasons), dtype=TEXT)
                for layer, rows in features.items():
                    _create(file, layer, rows.shape, rows.dtype)[:] = rows
            with h5py.File(temporary, "r") as file:
                for layer, rows in features.items():
                    if not np.array_equal(file["features"][layer][:], rows, equal_nan=True):
                        raise CacheDamagedError(f"{part} reads back otherwise than written.")
        self.seconds += now - self._since
        self._since = now
        self._buffer = []
        self._parts.append(part)

    def _stored(self, layer: str, rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored: np.ndarray = rows.astype(self.spec.dtype)
        if np.isinf(stored).any():
            raise FeatureValueError(
                f"{layer} reaches {np.nanmax(np.abs(rows)):g}, more than {self.spec.dtype} holds "
                "(65504). Extract with --dtype float32 --overwrite."
            )
        return stored

    # ---- finishing -----------------------------------------------------------------------

    def finish(self, conditions: dict[str, Any]) -> FeatureCache:
        """Write the finished file in place of the old one and take the parts away.

        Raises
        ------
        CacheIncompleteError
            If rows are still missing.
        """
        self.flush()
        if not self.changed and not self.pending:
            self._clear()
            return FeatureCache.open(self.path)
        sources = self._locate()
        with _placing(self.path) as temporary:
            self._write_finished(temporary, sources, conditions)
            # Reading everything back checks every chunk's checksum.
            with FeatureCache.open(temporary) as written:
                for layer, shape in self.shapes.items():
                    for _ in written.blocks(layer, _block_rows(shape)):
                        pass
        self._clear()
        return FeatureCache.open(self.path)

    def _locate(self) -> tuple[np.ndarray, np.ndarray]:
        """For each table row: number of the file that has it (-1: the old one), and its row."""
        keys, files, rows = [], [], []
        for number, part in enumerate(self._parts):
            with h5py.File(part, "r") as file:
                items, status = file["items"][:], file["status"][:]
                reasons = read_text(file["reasons"])
            keep = self.work[items].any(axis=1)
            settled = np.isin(status, SETTLED)
            self._note_unread(items[keep & ~settled], status, reasons, items)
            keep &= settled
            keys.append(_keys(self.work[items[keep]]))
            files.append(np.full(int(keep.sum()), number))
            rows.append(np.flatnonzero(keep))
        if self._old is not None:
            keep = np.isin(self._old.status, SETTLED)
            keys.append(_keys(self._old.digests[keep]))
            files.append(np.full(int(keep.sum()), -1))
            rows.append(np.flatnonzero(keep))
        readable = self._status == Status.OK
        file_of = np.full(len(self.table), -2)
        row_of = np.zeros(len(self.table), np.int64)
        if readable.any() and keys:
            known, first = np.unique(np.concatenate(keys), return_index=True)
            wanted = _keys(self._digests[readable])
            at = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
            found = known[at] == wanted if len(known) else np.zeros(len(wanted), bool)
            where = np.flatnonzero(readable)[found]
            file_of[where] = np.concatenate(files)[first[at[found]]]
            row_of[where] = np.concatenate(rows)[first[at[found]]]
        lost = int((readable & (file_of == -2)).sum())
        if lost:
            raise CacheIncompleteError(
                f"{lost} of {len(self.table)} rows of {self.path} are missing."
            )
        return file_of, row_of

    def _note_unread(
        self, unread: np.ndarray, status: np.ndarray, reasons: np.ndarray, items: np.ndarray
    ) -> None:
        """An image that went away between the scan and its turn keeps that status."""
        for item in unread:
            at = int(np.flatnonzero(items == item)[0])
            rows = _keys(self._digests) == _keys(self.work[item : item + 1])[0]
            self._status[rows] = status[at]
            self._reasons[rows] = reasons[at]
            self._digests = self._digests.copy()
            self._digests[rows] = NO_DIGEST

    def _write_finished(
        self,
        temporary: Path,
        sources: tuple[np.ndarray, np.ndarray],
        conditions: dict[str, Any],
    ) -> None:
        file_of, row_of = sources
        before = self._old.conditions.get("seconds", 0.0) if self._old is not None else 0.0
        with h5py.File(temporary, "w") as file, ExitStack() as opened:
            files: dict[int, h5py.File] = {}
            for layer, shape in self.shapes.items():
                data = _create(file, layer, (len(self.table), *shape), np.dtype(self.spec.dtype))
                size = _block_rows(shape)
                for start in range(0, len(self.table), size):
                    stop = min(start + size, len(self.table))
                    block = np.full((stop - start, *shape), np.nan, data.dtype)
                    for number in np.unique(file_of[start:stop]):
                        here = np.flatnonzero(file_of[start:stop] == number)
                        if number == -2:
                            continue
                        if number == -1:
                            assert self._old is not None
                            block[here] = self._old.features(layer, row_of[start + here])
                            continue
                        if number not in files:
                            if len(files) > 64:
                                opened.close()
                                files.clear()
                            files[number] = opened.enter_context(
                                h5py.File(self._parts[number], "r")
                            )
                        part = files[number]["features"][layer]
                        block[here] = read_rows(part, row_of[start + here])
                    data[start:stop] = block
            self._take_over_status(file_of, row_of)
            self._write_table(file)
            total = {**conditions, "seconds": round(before + self.seconds, 3)}
            file.attrs["conditions"] = json.dumps(total)
            file.attrs["spec"] = json.dumps(self.spec.to_dict())
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["format"] = FORMAT

    def _take_over_status(self, file_of: np.ndarray, row_of: np.ndarray) -> None:
        """Give each row the status its features were stored with."""
        for number in np.unique(file_of[file_of >= -1]):
            here = np.flatnonzero(file_of == number)
            if number == -1:
                assert self._old is not None
                status, reasons = self._old.status, self._old.reasons
            else:
                with h5py.File(self._parts[number], "r") as part:
                    status = part["status"][:]
                    reasons = read_text(part["reasons"])
            self._status[here] = status[row_of[here]]
            self._reasons[here] = reasons[row_of[here]]

    def _write_table(self, file: h5py.File) -> None:
        table = self.table
        columns = {"ids": table.ids, "reasons": self._reasons}
        if table.labels is not None:
            file["labels"] = table.labels
            columns["classes"] = text_column(table.classes)
        for name in ("splits", "groups"):
            if getattr(table, name) is not None:
                columns[name] = getattr(table, name)
        for name, column in columns.items():
            file.create_dataset(name, data=_encode(column), dtype=TEXT)
        file["status"] = self._status.astype(np.uint8)
        file["digests"] = self._digests

    def _clear(self) -> None:
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Let go of the lock and the old file; what is durable stays."""
        self._stack.close()


def _keys(digests: np.ndarray) -> np.ndarray:
    """Digests as one sortable value each."""
    return np.ascontiguousarray(digests).view("S16").reshape(-1)


def _encode(texts: Iterable[str]) -> np.ndarray:
    return text_column(text.encode("utf-8", "surrogateescape") for text in texts)


def _create(file: h5py.File, layer: str, shape: Shape, dtype: np.dtype[Any]) -> h5py.Dataset:
    row = int(np.prod(shape[1:])) * dtype.itemsize
    chunk = max(1, min(shape[0], CHUNK_BYTES // max(row, 1)))
    return file.require_group("features").create_dataset(
        layer, shape, dtype, chunks=(chunk, *shape[1:]), fletcher32=True
    )


def _block_rows(shape: Shape) -> int:
    return max(1, BLOCK_BYTES // max(1, 4 * int(np.prod(shape))))


class _placing:
    """Yields a temporary name; on leaving without error, syncs it and puts it in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)
        if os.name == "posix":  # the rename itself is durable once its folder is synced
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _put(path: Path, content: bytes) -> None:
    with _placing(path) as temporary:
        temporary.write_bytes(content)
