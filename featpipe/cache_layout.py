"""How columns lie in HDF5, with the checksums that prove them, and which files are opened at all.

`featpipe.cache_rows` does the same for features. What does not match is an error that names
it, never data.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featpipe.checksums import DIGEST_BYTES, digest_column
from featpipe.errors import CacheDamagedError
from featpipe.table import UNLABELLED, Status, text_column

LIBVER = ("v110", "v110")  # the first whose own structures carry checksums
PLAIN = "iufS"  # kinds of numpy; anything else lies in heaps without checksums, or is never written
FEATURES, CHUNK_SUMS, ROW_SUMS = "features", "chunk_checksums", "row_checksums"


def open_file(path: Path) -> h5py.File:
    """Open a file for reading, beside whoever else in this process reads it through HDF5."""
    try:
        file = _open(path)
    except OSError as error:
        raise CacheDamagedError(f"{path} is not an HDF5 file, or damaged: {error}") from error
    try:
        _refuse_foreign(file, path.stat().st_size, set())
    except Exception as error:  # nobody knows all that h5py raises on a strange file
        file.close()
        raise CacheDamagedError(f"{path} is refused: {error}") from error
    return file


def _open(path: Path) -> h5py.File:
    try:
        # A process can open a file only in one way of locking: this is what all others do.
        return h5py.File(path, "r", locking="best-effort")
    except OSError:  # no locks are to be had; the file never changes and needs none
        return h5py.File(path, "r", locking=False)


def _refuse_foreign(group: h5py.Group, size: int, seen: set[int]) -> None:
    """Refuse what leads out of the file, in circles, or claims to be larger than it."""
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        raise CacheDamagedError(f"{group.name} is a group of two names.")
    seen.add(address)
    for name in group.attrs:
        attribute = group.attrs.get_id(name)
        if attribute.shape != () or attribute.dtype.kind not in PLAIN:
            raise CacheDamagedError(f"the attribute {name} is no number or text of fixed length.")
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise CacheDamagedError(f"{group.name}: {name} is a link that leads elsewhere.")
        item = group[name]
        if isinstance(item, h5py.Group):
            _refuse_foreign(item, size, seen)
        elif not isinstance(item, h5py.Dataset):
            raise CacheDamagedError(f"{item.name} is neither a group nor a dataset.")
        elif item.is_virtual or item.external:
            raise CacheDamagedError(f"{item.name} keeps its data in another file.")
        elif item.dtype.kind not in PLAIN:
            raise CacheDamagedError(f"{item.name} has no numbers or texts of fixed length.")
        elif (claimed := item.size * item.dtype.itemsize) > size:
            raise CacheDamagedError(f"{item.name} claims {claimed:,} bytes; the file has {size:,}.")


# ---- columns -----------------------------------------------------------------------------


def write_columns(file: h5py.File, columns: dict[str, Any]) -> None:
    """Write columns, an object array as texts, and what proves them and the attributes.

    Bytes of file names that are not UTF-8 stay as they are. Texts have a fixed length: those of
    any length lie in HDF5's global heap, which has no checksums, and one flipped byte of it can
    have HDF5 read for ever.
    """
    for name, column in columns.items():
        values = column
        if column.dtype == object:
            texts = [text.encode("utf-8", "surrogateescape") for text in column]
            longest = max([1, *map(len, texts)])
            values = np.array(texts, h5py.string_dtype("utf-8", longest))
        file.create_dataset(name, data=values)
    proofs = {name: digest_column(values) for name, values in columns.items()}
    for kind in (CHUNK_SUMS, ROW_SUMS):
        for name, sums in file.get(kind, {}).items():
            proofs[f"{kind}/{name}"] = digest_column(sums[:])
    proofs |= {f"@{name}": _digest_text(read_attribute(file, name)) for name in file.attrs}
    file.attrs["checksums"] = as_attribute(json.dumps(proofs))


def as_attribute(text: str) -> np.bytes_:
    """A text as it is stored in an attribute: of fixed length, see `write_columns`."""
    return np.bytes_(text.encode())


def read_attribute(file: h5py.File, name: str) -> str:
    """A text or number that is an attribute, as text."""
    value = file.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def read_columns(file: h5py.File) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All columns that match their checksums, and the names of all others with the reason."""
    proofs: dict[str, str] = json.loads(read_attribute(file, "checksums"))
    columns: dict[str, np.ndarray] = {}
    wrong: dict[str, str] = {}
    for name, proof in proofs.items():
        try:
            if name.startswith("@"):
                found = _digest_text(read_attribute(file, name[1:]))
            else:
                columns[name] = _read_column(file[name])
                found = digest_column(columns[name])
        except Exception as error:  # as above
            wrong[name] = str(error)
        else:
            if found != proof:
                wrong[name] = "does not match its checksum"
        if name in wrong:
            columns.pop(name, None)
    for name in file:
        if isinstance(file[name], h5py.Dataset) and name not in proofs:
            wrong[name] = "has no checksum"
    return columns, wrong


def odd_columns(columns: dict[str, np.ndarray], classes_known: bool) -> list[str]:
    """Columns with another type or length than they must have, or values that mean nothing."""
    rows, classes = len(columns["status"]), columns.get("classes", text_column([]))
    right: dict[str, tuple[type, tuple[int, ...]]] = {
        "status": (np.uint8, (rows,)),
        "digests": (np.uint8, (rows, DIGEST_BYTES)),
        "labels": (np.int64, (rows,)),
        "classes": (np.object_, classes.shape),
        **dict.fromkeys(("ids", "reasons", "splits", "groups"), (np.object_, (rows,))),
    }
    odd = {
        name
        for name, (kind, shape) in right.items()
        if name in columns and (columns[name].dtype != kind or columns[name].shape != shape)
    }
    means: dict[str, tuple[int, int]] = {"status": (0, max(Status))}
    if classes_known:
        means["labels"] = (UNLABELLED, len(classes) - 1)
    odd |= {
        name
        for name, (least, most) in means.items()
        if name in columns and ((columns[name] < least) | (columns[name] > most)).any()
    }
    if len(set(classes.tolist())) != len(classes):
        odd.add("classes")
    return sorted(odd)


def _read_column(data: h5py.Dataset) -> np.ndarray:
    values: np.ndarray = data[:]
    if h5py.check_string_dtype(data.dtype) is None:
        return values
    return text_column(value.decode("utf-8", "surrogateescape") for value in values.tolist())


def _digest_text(text: str) -> str:
    return digest_column(text_column([text]))


def blocks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive stretches of at most `size` rows."""
    for start in range(0, rows, size):
        yield start, min(start + size, rows)
