"""Reading a table of images: CSV, TSV, or Parquet (with the ``parquet`` extra)."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from featpipe.errors import ImagesError, MissingExtraError
from featpipe.registry import no_such
from featpipe.settings import ImageSettings
from featpipe.table import canonical_split

SUFFIXES = (".csv", ".tsv", ".parquet")
GUESSES = {
    "path": "path file filename file_name filepath image image_name image_names image_path images",
    "label": "label labels class class_name target category y",
    "group": "group groups patient patient_id subject subject_id scene",
    "split": "split subset partition",
}


@dataclass(frozen=True)
class Manifest:
    """The columns of a table of images, as it has them.

    Attributes
    ----------
    paths : list of str
        As written; bytes that are not UTF-8 are surrogate escapes.
    labels : list of str or None, or None
    splits, groups : list of str, or None
    note : str
        Which columns these are.
    """

    paths: list[str]
    labels: list[str | None] | None
    splits: list[str] | None
    groups: list[str] | None
    note: str


def read_manifest(manifest: Path, settings: ImageSettings) -> Manifest:
    """Read a table and choose its columns by `settings`, or by their obvious names.

    Raises
    ------
    ImagesError
        If it is no table, has no rows, or it is not clear which column is which.
    """
    return choose_columns(read_columns(manifest), manifest, settings)


def choose_columns(
    columns: dict[str, list[str]], manifest: Path, settings: ImageSettings
) -> Manifest:
    """Say which columns of a table are which; errors are those of `read_manifest`."""
    if not columns or not len(next(iter(columns.values()))):
        raise ImagesError(f"{manifest} has no rows.")
    chosen = {
        kind: _choose(kind, getattr(settings, f"{kind}_column"), columns, str(manifest))
        for kind in GUESSES
    }
    path = chosen["path"]
    assert path is not None
    for name, values in columns.items():
        if name != path and any(map(is_bytes, (name, *values))):
            raise not_utf8(manifest)
    empty = next((row for row, name in enumerate(columns[path]) if not name.strip()), None)
    if empty is not None:
        raise ImagesError(f"{manifest} has no path in row {empty + 1} below its header.")
    labels: list[str | None] | None = None
    splits = groups = None
    if chosen["label"]:
        labels = [label.strip() or None for label in columns[chosen["label"]]]
    if chosen["group"]:
        groups = [group.strip() for group in columns[chosen["group"]]]
    if chosen["split"]:
        splits = [_split(name, chosen["split"], manifest) for name in columns[chosen["split"]]]
    used = ", ".join(f"{kind} = {name}" for kind, name in chosen.items() if name)
    return Manifest(columns[path], labels, splits, groups, f"columns: {used}")


def not_utf8(manifest: Path) -> ImagesError:
    """The error for a table in another encoding; names of files may be any bytes."""
    return ImagesError(
        f"{manifest} is not a UTF-8 {manifest.suffix[1:]} table. Save it as UTF-8; only paths of "
        "files whose names are other bytes may hold such bytes."
    )


def is_bytes(text: str) -> bool:
    """Whether a text stands for bytes that are not UTF-8."""
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def read_columns(manifest: Path) -> dict[str, list[str]]:
    """All columns of a table as text; none if it is empty. Parquet's lists are left out."""
    if not manifest.is_file():  # a pipe would be waited for
        raise ImagesError(f"There is no file {manifest}.")
    is_parquet = manifest.suffix.lower() == ".parquet"
    columns = _read_parquet(manifest) if is_parquet else _read_text(manifest)
    if any("\0" in text for name, values in columns.items() for text in (name, *values)):
        raise ImagesError(f"{manifest} has NUL bytes; is it UTF-16? No path and no label has them.")
    return columns


def _read_text(manifest: Path) -> dict[str, list[str]]:
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    try:
        with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ImagesError(f"{manifest} is not a {manifest.suffix[1:]} table: {error}.") from error
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
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(
            f"Reading {manifest} needs pyarrow: pip install 'featpipe[parquet]'."
        ) from error
    try:
        with manifest.open("rb") as opened:  # pyarrow itself takes no name that is not UTF-8
            file = ParquetFile(opened)
            # Lists are features, and would fill the memory as text.
            names = [one.name for one in file.schema_arrow if not types.is_nested(one.type)]
            table = file.read(columns=names)
        return {
            name: ["" if value is None else str(value) for value in table.column(name).to_pylist()]
            for name in table.column_names
        }
    except (ArrowException, ValueError, OverflowError) as error:  # values may be damaged, too
        raise ImagesError(f"{manifest} is not a Parquet table: {error}") from error


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
    if kind == "path" and not obvious:
        obvious = [name for name in names if name.strip().lower() == "id"]
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


def _split(name: str, column: str, manifest: Path) -> str:
    if not name.strip():
        return ""
    split = canonical_split(name)
    if split is None:
        raise ImagesError(f"{manifest} has the split {name!r} in {column}; use train, val or test.")
    return split
