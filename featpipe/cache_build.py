"""Building a feature cache: immutable parts first, then one file, each put in place whole.

Rows are found by the digest of their image's bytes, so that whatever was already computed
under the same Spec is used again wherever its image now lies. What is still to be computed
is a work list of digests that only ever grows; batches are fixed stretches of it, so that a
row is computed in the same company however often the run was interrupted.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from featpipe.cache import FORMAT_VERSION, FeatureCache, parts_folder
from featpipe.cache_assemble import Assembly
from featpipe.cache_parts import SETTLED, Part, digest_keys
from featpipe.durable import placing, put
from featpipe.engines import Batch
from featpipe.errors import (
    CacheDamagedError,
    CacheError,
    DiskSpaceError,
    FeatureValueError,
    ImagesChangedError,
    SpecMismatchError,
)
from featpipe.layers import Shape
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status, text_column

PART_ROWS = 256  # at most this many computed rows are lost with the process,
PART_BYTES = 64 << 20  # and at most about this much is held in memory
log = logging.getLogger(__name__)


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
    ImagesChangedError
        If the file there holds features of entirely other images.
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
        self._digests = digests.copy()
        self._status, self._reasons = status.copy(), reasons.copy()
        self.folder = parts_folder(path)
        self._stack = ExitStack()
        self._buffer: list[Batch] = []
        self._since = time.perf_counter()
        try:
            self._lock()
            self._old = self._open_old(overwrite)
            self.batch_size = self._open_build(batch_size, overwrite)
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
        read = self._digests[self._status == Status.OK]  # images that cannot be read share nothing
        if not np.isin(digest_keys(read), digest_keys(old.digests)).any():
            raise ImagesChangedError(
                f"{self.path} holds the features of {len(old)} images, none of which is among "
                f"these {len(self.table)}. Extract to another --out, or pass --overwrite."
            )
        return old

    def _refuse_other_spec(self, found: Spec, where: str) -> None:
        differences = found.differences(self.spec)
        if differences:
            raise SpecMismatchError(
                f"{where} was extracted with different settings:\n  "
                + "\n  ".join(differences)
                + "\nExtract to another --out, or pass --overwrite."
            )

    def _lock(self) -> None:
        if self.path.is_dir():
            raise CacheError(f"{self.path} is a folder; --out names a file.")
        file = self.folder / "lock"
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(file)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise CacheError(f"Another process is extracting to {self.path}.") from None
            if file.exists():  # else the one who held it has just finished and cleared up
                break
            lock.release()
        self._stack.callback(self._unlock, lock)

    def _unlock(self, lock: FileLock) -> None:
        if not (self.folder / "build.json").exists():  # refused, or finished: nothing is to be kept
            shutil.rmtree(self.folder, ignore_errors=True)
        lock.release()

    def _open_build(self, batch_size: int, overwrite: bool) -> int:
        """Go on with what was begun; an overwriting run goes on only with its own kind."""
        state = self.folder / "build.json"
        mine = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "batch_size": batch_size,
            "overwrite": overwrite,
        }
        try:
            begun = json.loads(state.read_text(encoding="utf-8")) if state.exists() else None
            spec = Spec.from_dict(begun["spec"]) if begun else self.spec
            begun_size = int(begun["batch_size"]) if begun else batch_size
        except (ValueError, KeyError, TypeError) as error:
            if not overwrite:
                raise CacheDamagedError(
                    f"{state} is damaged ({error}). Pass --overwrite to start anew."
                ) from error
            begun = None
        foreign = overwrite and not (begun and begun.get("overwrite"))
        if begun is None or foreign or (overwrite and spec.differences(self.spec)):
            for file in self.folder.iterdir():
                if file.name != "lock":
                    file.unlink()
            put(state, json.dumps(mine, indent=1).encode())
            return batch_size
        self._refuse_other_spec(spec, f"An unfinished {self.path}")
        return begun_size

    def _index(self) -> None:
        """Find each row's features: in the old file, in a part, or still to be computed."""
        work_file = self.folder / "work.bin"
        stored = work_file.read_bytes() if work_file.exists() else b""
        work = np.frombuffer(stored, np.uint8).reshape(-1, 16)
        done = np.zeros(len(work), bool)
        self._parts: list[Part] = []
        for path in sorted(self.folder.glob("part-*.h5")):
            try:
                part = Part.read(path)
            except CacheDamagedError as error:
                log.warning("%s It is computed again.", error)
                path.unlink()
                continue
            self._parts.append(part)
            done[part.items[part.settled]] = True

        wanted = np.unique(digest_keys(self._digests[self._status == Status.OK]))
        known = digest_keys(work[done])
        if self._old is not None:
            settled = np.isin(self._old.status, SETTLED)
            known = np.concatenate([known, digest_keys(self._old.digests[settled])])
        missing = wanted[~np.isin(wanted, known)]
        # New images join the work list in the order of their first row, on a fresh batch.
        fresh = missing[~np.isin(missing, digest_keys(work))]
        own, first = np.unique(digest_keys(self._digests), return_index=True)
        added = self._digests[np.sort(first[np.searchsorted(own, fresh)])]
        if len(added):
            gap = -len(work) % self.batch_size
            work = np.concatenate([work, np.zeros((gap, 16), np.uint8), added])
            done = np.concatenate([done, np.zeros(gap + len(added), bool)])
            put(work_file, work.tobytes())
        self.work = work
        needed = np.isin(digest_keys(work), missing) & ~done
        size = self.batch_size
        starts = np.unique(np.flatnonzero(needed) // size) * size
        self._batches = [list(range(start, min(start + size, len(work)))) for start in starts]
        self.pending = int(needed.sum())
        self.reused = int((self._status == Status.OK).sum()) - int(
            np.isin(digest_keys(self._digests), missing).sum()
        )

    def _check_space(self) -> None:
        if not self.changed:
            return
        row = sum(int(np.prod(shape)) for shape in self.shapes.values())
        row *= np.dtype(self.spec.dtype).itemsize
        need = row * (self.pending + len(self.table))
        free = shutil.disk_usage(self.folder).free
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

    @property
    def saved(self) -> int:
        """Computed rows that are durable in parts."""
        return sum(int(part.settled.sum()) for part in self._parts)

    def start_clock(self, begun: float) -> None:
        """Count seconds from `begun` (of `time.perf_counter`), so that set-up is included."""
        self._since = begun

    # ---- computing -----------------------------------------------------------------------

    def batches(self) -> Iterator[list[int]]:
        """Batches of work items that still have to be computed."""
        return iter(self._batches)

    def rows_of_work(self) -> np.ndarray:
        """For each work item, the first table row with its image; -1 where there is none."""
        own, first = np.unique(digest_keys(self._digests), return_index=True)
        at = np.minimum(np.searchsorted(own, digest_keys(self.work)), len(own) - 1)
        found = (own[at] == digest_keys(self.work)) & self.work.any(axis=1)
        rows: np.ndarray = np.where(found, first[at], -1)
        return rows

    def write(self, batch: Batch) -> None:
        """Take one batch's features; every 256 rows or 64 MiB they are made durable."""
        self._buffer.append(batch)
        rows = sum(len(held.items) for held in self._buffer)
        held = sum(rows.nbytes for batch in self._buffer for rows in batch.features.values())
        if rows >= PART_ROWS or held >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make everything taken so far durable, as one immutable part file."""
        if not self._buffer:
            return
        items = np.concatenate([batch.items for batch in self._buffer])
        images = [image for batch in self._buffer for image in batch.images]
        status = np.array([image.status for image in images], np.uint8)
        reasons = text_column(image.reason for image in images)
        computed = {layer: self._gather(layer) for layer in self.shapes}
        for layer, rows in computed.items():
            finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
            bad = ~finite & (status == Status.OK)
            status[bad], reasons[bad] = Status.NOT_FINITE, f"{layer} has NaN or infinity"
        features = {layer: self._stored(layer, rows, status) for layer, rows in computed.items()}
        now = time.perf_counter()
        seconds = now - self._since
        number = 1 + max((part.number for part in self._parts), default=0)
        path = self.folder / f"part-{number:06d}-{items[0]:012d}-{items[-1]:012d}.h5"
        self._parts.append(Part.write(path, items, status, reasons, features, seconds))
        self._since = now
        self._buffer = []

    def _gather(self, layer: str) -> np.ndarray:
        shape = self.shapes[layer]
        blocks = [
            batch.features.get(layer, np.full((len(batch.items), *shape), np.nan, np.float32))
            for batch in self._buffer
        ]
        return np.concatenate(blocks)

    def _stored(self, layer: str, rows: np.ndarray, status: np.ndarray) -> np.ndarray:
        rows[status != Status.OK] = np.nan
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

        Parameters
        ----------
        conditions : dict
            Stored in the file; the seconds that all its rows took are added.

        Raises
        ------
        CacheIncompleteError
            If rows are still missing.
        """
        self.flush()
        if self.changed or self.pending:
            before = self._old.conditions.get("seconds", 0.0) if self._old is not None else 0.0
            begun = self._since - before - sum(part.seconds for part in self._parts)
            assembly = Assembly(
                self.path, self.spec, self.shapes, self.table, self._digests, self._status,
                self._reasons, self.work, self._parts, self._old,
            )  # fmt: skip
            # What a killed run leaves of the temporary file goes with the parts.
            with placing(self.path, self.folder) as temporary:
                assembly.write(temporary, conditions, begun)
        (self.folder / "build.json").unlink()
        self.close()
        return FeatureCache.open(self.path)

    def close(self) -> None:
        """Let go of the lock and the old file; what is durable stays."""
        self._stack.close()
