"""Building a feature cache: immutable parts first, then one file, each put in place whole.

Rows are found by the digest of their image's bytes, so that whatever was already computed
under the same Spec is used again wherever its image now lies. What is still to be computed
is a work list of digests that only ever grows; batches are fixed stretches of it, so that a
row is computed in the same company however often the run was interrupted.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.cache import FORMAT_VERSION, FeatureCache, parts_folder
from featpipe.cache_assemble import Assembly
from featpipe.cache_parts import Part
from featpipe.cache_stock import (
    SETTLED,
    Begun,
    Origin,
    Stock,
    digest_keys,
    open_old,
    precedent_of,
    read_begun,
    read_parts,
    read_work,
    refuse_other,
    refuse_other_images,
    refuse_other_spec,
)
from featpipe.durable import clear, exclusive, placing, put
from featpipe.engines import Batch
from featpipe.errors import CacheDamagedError, CacheError, DiskSpaceError, FeatureValueError
from featpipe.layers import Shape
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status, text_column

PART_ROWS = 256  # at most this many computed rows are lost with the process,
PART_BYTES = 64 << 20  # and at most about this much is held in memory
log = logging.getLogger(__name__)


class CacheBuilder:
    """Collects computed rows on disk until no row is missing.

    Made first, so that whatever forbids writing is known at once; `begin` then says what is to
    be computed, and `take` of which images.

    Parameters
    ----------
    path : Path
        The finished file's name; parts lie in ``<path>.parts`` beside it.
    overwrite : bool
        Use nothing of what is there.
    reuse : sequence of Path
        Other caches to take rows from.
    begun : float
        From when (of `time.perf_counter`) seconds are counted; now if left out.

    Attributes
    ----------
    precedent : Precedent or None
        How what is there was computed.

    Raises
    ------
    CacheError
        If another process is writing to the same file, or the folder cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        overwrite: bool = False,
        reuse: Sequence[Path] = (),
        begun: float | None = None,
    ) -> None:
        self.path, self._overwrite = path, overwrite
        self.folder = parts_folder(path)
        self._stack = ExitStack()
        self._buffer: list[Batch] = []
        self._since = time.perf_counter() if begun is None else begun
        if os.path.isdir(path):  # which, unlike Path's, is never an error
            raise CacheError(f"{path} is a folder; --out names a file.")
        if os.path.exists(path) and not os.path.isfile(path):
            raise CacheError(f"{path} is no regular file; --out names one, or one to be made.")
        self._stack.enter_context(exclusive(self.folder, path))
        self._stack.callback(self._clear)
        try:
            self._old = None if overwrite else open_old(path)
            self._others: list[FeatureCache] = []
            if self._old is not None:
                self._stack.callback(self._old.close)
            for file in reuse:
                self._others.append(self._stack.enter_context(FeatureCache.salvage(file)))
            self._begun = self._read_begun()
            self.precedent = precedent_of(self._begun, self._old, self._others)
        except BaseException:
            self.close()
            raise

    def begin(
        self, spec: Spec, shapes: dict[str, Shape], batch_size: int, runtime: str = ""
    ) -> None:
        """Say what is computed; an interrupted run keeps the batch size it was begun with.

        Parameters
        ----------
        spec : Spec
        shapes : dict
            Layer name to the shape of one row.
        batch_size : int
        runtime : str
            Noted for who resumes.

        Raises
        ------
        SpecMismatchError
            If what is there was made with other settings.
        """
        self.spec, self.shapes = spec, shapes
        if self._old is not None:
            refuse_other_spec(self._old.spec, spec, str(self.path))
        for other in self._others:
            refuse_other(other, spec)
        self.batch_size = self._open_build(batch_size, runtime)

    def _clear(self) -> None:
        # Refused, finished, or nothing computed yet: nothing is to be kept.
        if not (self.folder / "build.json").exists() or not any(self.folder.glob("part-*.h5")):
            clear(self.folder)

    def _read_begun(self) -> Begun | None:
        for file in self.folder.glob(".*.tmp"):  # a killed run's; it may be large
            file.unlink()
        if not any(self.folder.glob("part-*.h5")):
            return None  # it was killed before anything was computed
        try:
            begun = read_begun(self.folder)
        except CacheDamagedError:
            if not self._overwrite:
                raise
            return None
        # An overwriting run goes on only with its own kind.
        return None if begun is not None and self._overwrite and not begun.overwrite else begun

    def _open_build(self, batch_size: int, runtime: str) -> int:
        begun = self._begun
        if begun is not None and not (self._overwrite and begun.spec.differences(self.spec)):
            refuse_other_spec(begun.spec, self.spec, f"An unfinished {self.path}")
            return begun.batch_size
        for file in self.folder.iterdir():
            if file.name != "lock":
                file.unlink()
        mine = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "batch_size": batch_size,
            "overwrite": self._overwrite,
            "runtime": runtime,
        }
        put(self.folder / "build.json", json.dumps(mine, indent=1).encode())
        return batch_size

    def take(
        self, table: ImageTable, digests: np.ndarray, status: np.ndarray, reasons: np.ndarray
    ) -> None:
        """Say which images there are, and find out which of them are still to be computed.

        Parameters
        ----------
        table : ImageTable
        digests : uint8 array, shape (n, 16)
            Of each row's image; zeros where it could not be read.
        status, reasons : arrays, shape (n,)
            What reading each image gave.

        Raises
        ------
        ImagesChangedError
            If the file there holds features of entirely other images.
        DiskSpaceError
            If the features would not fit.
        """
        columns: list[Any] = [table.ids, table.classes, table.splits, table.groups]
        for text in (text for column in columns if column is not None for text in column):
            if "\0" in text:
                raise CacheError(f"{text!r} has a NUL in it, which HDF5 cannot hold.")
        self.table = table
        self._digests, self._status, self._reasons = digests.copy(), status.copy(), reasons.copy()
        if self._old is not None:
            refuse_other_images(self._old, digests, status == Status.OK)
        self._index()
        self._check_space()

    def _index(self) -> None:
        """Find each row's features: in some file, or still to be computed."""
        work = read_work(self.folder)
        self._parts, damaged = read_parts(self.folder)
        for error in damaged:
            log.warning("%s It is computed again.", error)
        for path in set(self.folder.glob("part-*.h5")) - {part.path for part in self._parts}:
            path.unlink()
        layers = list(self.shapes)
        self._elsewhere = [
            Origin.of_cache(other, map(other.inspect, layers)) for other in self._others
        ]
        self._damaged = False
        if self._old is not None:
            damage = [self._old.inspect(layer) for layer in layers]
            origin = Origin.of_cache(self._old, damage)
            lost = int((self._old.ok & ~origin.usable).sum())
            self._damaged = any(len(found.rows) or found.outside for found in damage)
            if self._damaged:
                log.warning(
                    "%s is damaged and written anew; %d rows do not match their checksums and are "
                    "computed again.",
                    self.path,
                    lost,
                )
            self._elsewhere.insert(0, origin)
        keys = digest_keys(self._digests)
        wanted = np.unique(keys[self._status == Status.OK])
        missing = wanted[~self._stock().has(wanted)]
        # New images join the work list in the order of their first row, on a fresh batch. Every
        # batch is full: a network's last digits may depend on how many images it is given.
        fresh = missing[~np.isin(missing, digest_keys(work))]
        own, first = np.unique(keys, return_index=True)
        added = self._digests[np.sort(first[np.searchsorted(own, fresh)])]
        if len(added):
            before, after = -len(work) % self.batch_size, -len(added) % self.batch_size
            gaps = np.zeros((before, 16), np.uint8), np.zeros((after, 16), np.uint8)
            work = np.concatenate([work, gaps[0], added, gaps[1]])
            put(self.folder / "work.bin", work.tobytes())
        self.work = work
        needed = np.isin(digest_keys(work), missing)
        size = self.batch_size
        starts = np.unique(np.flatnonzero(needed) // size) * size
        self._batches = [list(range(start, min(start + size, len(work)))) for start in starts]
        self.pending = int(needed.sum())
        self.reused = int((self._status == Status.OK).sum() - np.isin(keys, missing).sum())

    def _stock(self) -> Stock:
        return Stock([*map(Origin.of_part, self._parts), *self._elsewhere])

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
            and not old.damaged
            and not self._damaged
            and np.array_equal(old.digests, self._digests)
            and old.table.classes == self.table.classes
            and all(
                np.array_equal(getattr(old.table, name), getattr(self.table, name))
                for name in ("ids", "labels", "splits", "groups")
            )
        )

    @property
    def saved(self) -> int:
        """Computed rows that are durable in parts."""
        return sum(int(np.isin(part.status, SETTLED).sum()) for part in self._parts)

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
        digests = self.work[items]
        self._parts.append(Part.write(path, items, digests, status, reasons, features, seconds))
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
        if rows.dtype == self.spec.dtype:  # and finite, or marked as not
            return rows
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
            stock = self._stock()
            self._note_unread(stock)
            assembly = Assembly(
                self.path, self.spec, self.shapes, self.table, self._digests, self._status,
                self._reasons, stock,
            )  # fmt: skip
            # What a killed run leaves of the temporary file goes with the parts.
            with placing(self.path, self.folder) as temporary:
                assembly.write(temporary, conditions, begun)
        (self.folder / "build.json").unlink(missing_ok=True)
        self.close()
        return FeatureCache.open(self.path)

    def _note_unread(self, stock: Stock) -> None:
        """An image that went away between the scan and its turn has no features."""
        keys = digest_keys(self._digests)
        for part in self._parts:
            theirs = digest_keys(part.digests)
            lost = ~np.isin(part.status, SETTLED) & part.digests.any(axis=1)
            for at in np.flatnonzero(lost & ~stock.has(theirs)):
                rows = keys == theirs[at]
                self._status[rows], self._reasons[rows] = part.status[at], part.reasons[at]
                self._digests[rows] = 0

    def close(self) -> None:
        """Let go of the lock and the old file; what is durable stays."""
        self._stack.close()
