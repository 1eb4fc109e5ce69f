"""Putting the finished cache together from parts and from the file it replaces."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featpipe.cache import FORMAT, FORMAT_VERSION, FeatureCache
from featpipe.cache_parts import SETTLED, Part, create_features, create_text, digest_keys
from featpipe.errors import CacheIncompleteError
from featpipe.layers import Shape
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status

BLOCK_BYTES = 32 << 20
OLD, NOWHERE = -1, -2


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
    work : uint8 array, shape (items, 16)
        Digest of each work item.
    parts : list of Part
    old : FeatureCache or None
        The file that is replaced, if its rows may be used.
    """

    path: Path
    spec: Spec
    shapes: dict[str, Shape]
    table: ImageTable
    digests: np.ndarray
    status: np.ndarray
    reasons: np.ndarray
    work: np.ndarray
    parts: list[Part]
    old: FeatureCache | None

    def write(self, file_name: Path, conditions: dict[str, Any], begun: float) -> None:
        """Write the whole file and read it back, which checks every chunk's checksum.

        The seconds since `begun` (of `time.perf_counter`) are stored among the conditions.

        Raises
        ------
        CacheIncompleteError
            If a row's features are nowhere.
        """
        self._note_unread()
        self._locate()
        with h5py.File(file_name, "w") as file:
            for layer, shape in self.shapes.items():
                dtype = np.dtype(self.spec.dtype)
                data = create_features(file, layer, (len(self.table), *shape), dtype)
                size = block_rows(shape)
                for start in range(0, len(self.table), size):
                    stop = min(start + size, len(self.table))
                    data[start:stop] = self._block(layer, start, stop)
            self._take_over_status()
            self._write_table(file)
            seconds = round(time.perf_counter() - begun, 3)
            file.attrs["conditions"] = json.dumps({**conditions, "seconds": seconds})
            file.attrs["spec"] = json.dumps(self.spec.to_dict())
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["format"] = FORMAT
        with FeatureCache.open(file_name) as written:
            for layer, shape in self.shapes.items():
                for _ in written.blocks(layer, block_rows(shape)):
                    pass

    def _note_unread(self) -> None:
        """An image that went away between the scan and its turn has no features."""
        keys = digest_keys(self.digests)
        known = self._known_keys()
        for part in self.parts:
            for at in np.flatnonzero(~part.settled & self.work[part.items].any(axis=1)):
                key = digest_keys(self.work[part.items[at]][None])[0]
                if key in known:
                    continue
                rows = keys == key
                self.status[rows], self.reasons[rows] = part.status[at], part.reasons[at]
                self.digests[rows] = 0

    def _known_keys(self) -> set[bytes]:
        known: set[bytes] = set()
        if any(not part.settled.all() for part in self.parts):
            for part in self.parts:
                known.update(digest_keys(self.work[part.items[part.settled]]).tolist())
            if self.old is not None:
                settled = np.isin(self.old.status, SETTLED)
                known.update(digest_keys(self.old.digests[settled]).tolist())
        return known

    def _locate(self) -> None:
        """Find the file that has each row's features, and the row there."""
        keys, files, rows = [], [], []
        for number, part in enumerate(self.parts):
            usable = part.settled & self.work[part.items].any(axis=1)
            keys.append(digest_keys(self.work[part.items[usable]]))
            files.append(np.full(int(usable.sum()), number))
            rows.append(np.flatnonzero(usable))
        if self.old is not None:
            usable = np.isin(self.old.status, SETTLED)
            keys.append(digest_keys(self.old.digests[usable]))
            files.append(np.full(int(usable.sum()), OLD))
            rows.append(np.flatnonzero(usable))
        self._file_of = np.full(len(self.table), NOWHERE)
        self._row_of = np.zeros(len(self.table), np.int64)
        readable = np.flatnonzero(self.status == Status.OK)
        if len(readable) and sum(map(len, keys)):
            known, first = np.unique(np.concatenate(keys), return_index=True)
            wanted = digest_keys(self.digests[readable])
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            found = known[at] == wanted
            self._file_of[readable[found]] = np.concatenate(files)[first[at[found]]]
            self._row_of[readable[found]] = np.concatenate(rows)[first[at[found]]]
        lost = int((self._file_of[readable] == NOWHERE).sum())
        if lost:
            raise CacheIncompleteError(
                f"{lost} of {len(self.table)} rows of {self.path} are still to be computed. Run "
                "the same extract again."
            )

    def _block(self, layer: str, start: int, stop: int) -> np.ndarray:
        block = np.full((stop - start, *self.shapes[layer]), np.nan, self.spec.dtype)
        for number in np.unique(self._file_of[start:stop]):
            here = np.flatnonzero(self._file_of[start:stop] == number)
            rows = self._row_of[start + here]
            if number == OLD and self.old is not None:
                block[here] = self.old.features(layer, rows)
            elif number >= 0:
                block[here] = self.parts[number].features(layer, rows)
        return block

    def _take_over_status(self) -> None:
        """Give each row the status its features were stored with."""
        for number in np.unique(self._file_of[self._file_of > NOWHERE]):
            here = np.flatnonzero(self._file_of == number)
            origin = self.old if number == OLD else self.parts[number]
            assert origin is not None
            self.status[here] = origin.status[self._row_of[here]]
            self.reasons[here] = origin.reasons[self._row_of[here]]

    def _write_table(self, file: h5py.File) -> None:
        create_text(file, "ids", self.table.ids)
        create_text(file, "reasons", self.reasons)
        if self.table.labels is not None:
            file["labels"] = self.table.labels
            create_text(file, "classes", self.table.classes)
        for name in ("splits", "groups"):
            if getattr(self.table, name) is not None:
                create_text(file, name, getattr(self.table, name))
        file["status"] = self.status.astype(np.uint8)
        file["digests"] = self.digests


def block_rows(shape: Shape) -> int:
    """Rows of this shape that make about 32 MiB."""
    return max(1, BLOCK_BYTES // max(1, 4 * int(np.prod(shape))))
