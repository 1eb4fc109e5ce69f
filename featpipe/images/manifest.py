"""A table of images: CSV, TSV, or Parquet (with the ``parquet`` extra)."""

import csv
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from featpipe.errors import ImagesError, MissingExtraError
from featpipe.images import ImageSource
from featpipe.registry import no_such
from featpipe.settings import ImageSettings
from featpipe.table import canonical_split, make_table

SUFFIXES = (".csv", ".tsv", ".parquet")
GUESSES = {
    "path": "path file filename file_name filepath image image_name image_names image_path images",
    "label": "label labels class class_name target category y",
    "group": "group groups patient patient_id subject subject_id scene",
    "split": "split subset partition",
}


def accepts(location: str) -> bool:
    """Whether `location` is a file with a manifest's suffix."""
    path = Path(location)
    return path.suffix.lower() in SUFFIXES and path.is_file()


def open(location: str, settings: ImageSettings) -> ImageSource:
    """Read the table; paths are relative to ``settings.root``, or to the table's folder."""
    manifest = Path(location)
    columns = _read_columns(manifest)
    if not columns or not len(next(iter(columns.values()))):
        raise ImagesError(f"{location} has no rows.")
    chosen = {
        kind: _choose(kind, getattr(settings, f"{kind}_column"), columns, location)
        for kind in GUESSES
    }
    assert chosen["path"] is not None
    root = Path(settings.root) if settings.root else manifest.parent
    paths = columns[chosen["path"]]
    empty = next((row for row, name in enumerate(paths) if not name.strip()), None)
    if empty is not None:
        raise ImagesError(f"{location} has no path in row {empty + 1} below its header.")
    ids = [_posix(name, root) for name in paths]
    labels = splits = groups = None
    if chosen["label"]:
        labels = [label.strip() or None for label in columns[chosen["label"]]]
    if chosen["group"]:
        groups = [group.strip() for group in columns[chosen["group"]]]
    if chosen["split"]:
        splits = [_split(name, chosen["split"], location) for name in columns[chosen["split"]]]
    _check_root(root, ids, location)
    used = ", ".join(f"{kind} = {name}" for kind, name in chosen.items() if name)

    def read(row: int) -> bytes:
        return (root / ids[row]).read_bytes()

    return ImageSource(location, make_table(ids, labels, splits, groups), read, f"columns: {used}")


def _read_columns(manifest: Path) -> dict[str, list[str]]:
    if manifest.suffix.lower() == ".parquet":
        return _read_parquet(manifest)
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImagesError(
            f"{manifest} is not a UTF-8 {manifest.suffix[1:]} table: {error}."
        ) from error
    if not rows:
        return {}
    header, body = rows[0], [row for row in rows[1:] if row]
    if len(set(header)) != len(header):
        raise ImagesError(f"{manifest} has two columns of one name: {', '.join(header)}.")
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(header):
            raise ImagesError(
                f"Row {number} of {manifest} has {len(row)} fields, its header {len(header)}."
            )
    return {name: [row[i] for row in body] for i, name in enumerate(header)}


def _read_parquet(manifest: Path) -> dict[str, list[str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise MissingExtraError(
            f"Reading {manifest} needs pyarrow: pip install 'featpipe[parquet]'."
        ) from error
    try:
        table = read_table(manifest)
    except ArrowException as error:
        raise ImagesError(f"{manifest} is not a Parquet table: {error}") from error
    return {
        name: ["" if value is None else str(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }


def _choose(kind: str, asked: str | None, columns: Iterable[str], location: str) -> str | None:
    """The column for `kind`: the one asked for, else the one whose name is obvious."""
    names = list(columns)
    if asked is not None:
        if asked not in names:
            raise ImagesError(
                f"{no_such('column', asked, names)} Columns of {location}: {_list(names)}."
            )
        return asked
    obvious = [name for name in names if name.strip().lower() in GUESSES[kind].split()]
    if len(obvious) == 1:
        return obvious[0]
    if obvious or kind == "path":
        raise ImagesError(
            f"Which column of {location} is the {kind}? {_list(names)}. "
            f"Say so with --{kind}-column NAME."
        )
    return None


def _list(names: list[str]) -> str:
    return ", ".join(names)


def _posix(path: str, root: Path) -> str:
    """A path with ``/`` and nothing superfluous, so that one image has one id."""
    as_plain = path.strip().replace("\\", "/")  # what hand-made and Windows tables mean
    if path != as_plain and not os.path.exists(root / path):
        path = as_plain
    return posixpath.normpath(path)


def _split(name: str, column: str, location: str) -> str:
    if not name.strip():
        return ""
    split = canonical_split(name)
    if split is None:
        raise ImagesError(f"{location} has the split {name!r} in {column}; use train, val or test.")
    return split


def _check_root(root: Path, ids: list[str], location: str) -> None:
    """Refuse a root under which none of the first images lies, and look for the right one."""
    sample = ids[:100]
    if any(os.path.exists(root / name) for name in sample):
        return
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    hint = next((folder for folder in folders if os.path.exists(folder / sample[0])), None)
    raise ImagesError(
        f"None of the first {len(sample)} images of {location} lies below {root} "
        f"(looked for {sample[0]}). "
        + (f"They are in {hint}: pass --root {hint}." if hint else "Pass their folder as --root.")
    )
