"""The table beside features that are exported or imported."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.errors import ImagesError
from featpipe.manifest import SUFFIXES, choose_columns, read_columns
from featpipe.settings import ImageSettings
from featpipe.table import SPLITS, ImageTable, Status, make_table, text_column

PROOFS = ("status", "reason", "digest")  # what an export has and other tables do not
EXPORTED = ("id", "label", "split", "group", *PROOFS)


@dataclass(frozen=True, eq=False)
class Listing:
    """A table, and what became of each of its rows.

    Attributes
    ----------
    title : str
        For messages.
    table : ImageTable
    status : uint8 array, shape (n,)
    reasons : object array of str, shape (n,)
    digests : uint8 array, shape (n, 16)
        Zeros where the table has none.
    """

    title: str
    table: ImageTable
    status: np.ndarray
    reasons: np.ndarray
    digests: np.ndarray


def write_csv(cache: FeatureCache, path: Path) -> None:
    """Write a cache's columns; bytes that are not UTF-8 stand as they are."""
    columns = cache.columns()
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def read_listing(table: str | Path | ImageTable, settings: ImageSettings) -> Listing:
    """Take a table over; its images need not be there.

    Columns as `write_csv` writes them come back exactly; any other table is read as a manifest.

    Raises
    ------
    ImagesError
        If it is no table, it is not clear which column is which, or its statuses and digests
        are none of featpipe's.
    """
    if isinstance(table, ImageTable):
        return _listing("the table", table, {})
    table = Path(table)
    if table.suffix.lower() not in SUFFIXES:
        raise ImagesError(f"{table} is no table: tables are {', '.join(SUFFIXES)} files.")
    if not table.is_file():
        raise ImagesError(f"There is no table {table}.")
    columns = read_columns(table)
    if not columns and table.suffix.lower() == ".parquet":
        raise ImagesError(f"{table} has no columns but lists: give the table as --table.")
    if _is_export(columns) and settings == ImageSettings():
        labels = [label or None for label in columns.get("label", [])] or None
        listed = make_table(columns["id"], labels, columns.get("split"), columns.get("group"))
    else:
        found = choose_columns(columns, table, settings)
        listed = make_table(found.paths, found.labels, found.splits, found.groups)
    return _listing(str(table), listed, columns)


def _is_export(columns: dict[str, list[str]]) -> bool:
    """Whether these are exactly the columns that an export has."""
    expected = [name for name in EXPORTED if name in columns or name in ("id", *PROOFS)]
    return list(columns) == expected and set(columns.get("split", [])) <= {"", *SPLITS}


def _listing(where: str, table: ImageTable, columns: dict[str, list[str]]) -> Listing:
    rows = len(table)
    status, reasons = np.zeros(rows, np.uint8), text_column([""] * rows)
    digests = np.zeros((rows, 16), np.uint8)
    if set(PROOFS) <= columns.keys():
        status, digests = _proofs(where, columns)
        reasons = text_column(columns["reason"])
    texts = (table.ids, table.classes, () if table.groups is None else table.groups, reasons)
    strange = next((text for column in texts for text in column if "\0" in text), None)
    if strange is not None:
        raise ImagesError(f"{where} has a NUL in {strange!r}, which HDF5 cannot hold.")
    return Listing(where, table, status, reasons, digests)


def _proofs(where: str, columns: dict[str, list[str]]) -> tuple[np.ndarray, np.ndarray]:
    titles = {status.title: status for status in Status}
    for name, form in (("status", "|".join(titles)), ("digest", "[0-9a-f]{32}")):
        wrong = [row for row, text in enumerate(columns[name]) if not re.fullmatch(form, text)]
        if wrong:
            raise ImagesError(
                f"{where} has the {name} {columns[name][wrong[0]]!r} in row {wrong[0]}, which no "
                f"export has: take its columns {', '.join(PROOFS)} away, or name them otherwise."
            )
    status = np.array([titles[text] for text in columns["status"]], np.uint8)
    digests = np.frombuffer(bytes.fromhex("".join(columns["digest"])), np.uint8)
    return status, digests.reshape(-1, 16)
