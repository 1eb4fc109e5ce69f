"""A split: the rows of each part and fold, and the CSV file that holds them."""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.durable import put
from featpipe.errors import ImagesError, SplitError
from featpipe.folds import Folds
from featpipe.manifest import read_columns
from featpipe.table import SPLITS, ImageTable, canonical_split, text_column

_FOLD = re.compile(r"fold\d*", re.ASCII)
# Other tools write whole numbers with ".0" in columns that have empty fields.
_NUMBER = re.compile(r"\s*(\d{1,18})(\.0)?\s*", re.ASCII)


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of each part, ascending; no row is in two of them.

    Attributes
    ----------
    train, val, test : int arrays
        `val` and `test` may be empty.
    origin : str
        One sentence on how the rows were divided, for people.
    folds : tuple of (int array, int array)
        Training and validation rows of each fold; together they are the rows of `train`. Every
        repetition validates each row once; its folds follow one another.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    origin: str
    folds: Folds = ()

    def parts(self) -> dict[str, np.ndarray]:
        """The parts that are not empty, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: rows for name, rows in parts.items() if len(rows)}

    def fold_numbers(self) -> list[np.ndarray]:
        """For each repetition, the fold that each row of `train` validates in, from 1.

        Raises
        ------
        SplitError
            If the folds do not divide the training rows.
        """
        columns: list[np.ndarray] = []
        for train, val in self.folds:
            if not columns or columns[-1].all():
                columns.append(np.zeros(len(self.train), dtype=np.int64))
            numbers, inside = columns[-1], np.isin(self.train, val)
            if not np.array_equal(self.train[~inside], train) or numbers[inside].any():
                break
            numbers[inside] = numbers.max() + 1
        if sum(int(numbers.max()) for numbers in columns) != len(self.folds) or not all(
            numbers.all() for numbers in columns
        ):
            raise SplitError(
                "The folds do not validate each training row once; make them with split_rows."
            )
        return columns


def save_split(split: Split, table: ImageTable, path: str | Path) -> None:
    """Write a split as CSV, one row an image: ``id``, ``part``, and ``fold1``, ``fold2``, ...

    ``part`` is empty for a row in none. A fold column is a repetition: the number of the fold
    in which a training row validates, empty for other rows. Bytes of ids that are not UTF-8
    stand as they are.

    Raises
    ------
    SplitError
        If `path` is no .csv in a folder that is there, or the folds do not divide the training
        rows.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv" or not path.parent.is_dir():
        raise SplitError(f"A split is written as .csv to a folder that is there, not to {path}.")
    parts = text_column([""] * len(table))
    for name, rows in split.parts().items():
        parts[rows] = name
    columns = {"id": table.ids, "part": parts}
    for number, numbers in enumerate(split.fold_numbers(), start=1):
        columns[f"fold{number}"] = text_column([""] * len(table))
        columns[f"fold{number}"][split.train] = numbers
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    put(path, text.getvalue().encode("utf-8", "surrogateescape"))


def load_split(path: str | Path, table: ImageTable, usable: np.ndarray) -> Split:
    """Read a split that `save_split`, a person, or another tool has written.

    Parameters
    ----------
    path : str or Path
        CSV, or by its suffix TSV or Parquet, with the columns ``id`` and ``part``; any columns
        ``fold``, ``fold1``, ... are folds, and others are ignored.
    table : ImageTable
    usable : bool array, shape (n,)
        Rows that may be used at all (those with features). Others, those without a label, and
        those that the file does not name are left out; `Split.origin` says how many.

    Raises
    ------
    SplitError
        If it is no such table, names an image twice or one that the table does not have, has no
        training rows, or a part or fold that is none.
    """
    where = str(path)
    use = np.zeros(len(table), dtype=bool)
    use[labelled_rows(table, usable)] = True
    columns = _read(Path(path))
    ids = columns["id"]
    row_of = {name: row for row, name in enumerate(table.ids)}
    unknown = [name for name in ids if name not in row_of]
    if unknown:
        raise SplitError(
            f"{where} names {len(unknown)} images that are not among these {len(table)}, such as "
            f"{unknown[0]!r}. Use the images it was made for, or take those rows away."
        )
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise SplitError(
            f"{where} names {len(twice)} images more than once, such as {twice[0]!r}. Keep one "
            "row of each."
        )
    rows = np.array([row_of[name] for name in ids], dtype=np.int64)
    listed = np.isin(np.arange(len(table)), rows)
    parts = text_column([""] * len(table))
    parts[rows] = [_part(where, *pair) for pair in zip(ids, columns["part"], strict=True)]
    train, val, test = (np.flatnonzero(use & (parts == name)) for name in SPLITS)
    if not len(train):
        raise SplitError(
            f"{where} has no training images with a label and features; give some the part train."
        )
    folds: Folds = ()
    for name in sorted(filter(_FOLD.fullmatch, columns), key=lambda name: (len(name), name)):
        numbers = np.zeros(len(table), dtype=np.int64)
        numbers[rows] = _fold_column(where, name, columns, parts[rows])
        folds += _folds_of(where, name, train, numbers[train])
    notes = {
        "images that it does not name": use & ~listed,
        "images without a part": use & listed & (parts == ""),
        "of its images without a label or features": ~use & (parts != ""),
    }
    counted = ((int(left.sum()), what) for what, left in notes.items())
    left_out = "".join(f"; {count} {what} are left out" for count, what in counted if count)
    return Split(train, val, test, f"from {where}{left_out}", folds)


def labelled_rows(table: ImageTable, usable: np.ndarray) -> np.ndarray:
    """Rows that have a label and are usable; a SplitError if there are none."""
    rows = np.flatnonzero(usable & table.labelled)
    if table.labels is None or not len(rows):
        raise SplitError(
            "None of the images has both a label and features. Put them in one folder a class, "
            "or give a manifest with a label column."
        )
    return rows


def _read(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise SplitError(
            f"There is no split file {path}. split can be auto, given, random, or a file with "
            "the columns id and part, such as featpipe split --out writes."
        )
    try:
        columns = read_columns(path)
    except ImagesError as error:
        raise SplitError(f"The split cannot be read. {error}") from error
    missing = [name for name in ("id", "part") if name not in columns]
    if missing:
        raise SplitError(
            f"{path} has no column {' and no column '.join(missing)}, but: "
            f"{', '.join(columns) or 'nothing'}. A split file has an id and a part in each row."
        )
    return columns


def _part(where: str, name: str, written: str) -> str:
    part = canonical_split(written) if written.strip() else ""
    if part is None:
        raise SplitError(
            f"{where} puts {name!r} into the part {written!r}; use train, val or test, or "
            "nothing to leave an image out."
        )
    return part


def _fold_column(
    where: str, column: str, columns: dict[str, list[str]], parts: np.ndarray
) -> list[int]:
    """The numbers in a fold column; 0 where it is empty, as it must be outside of train."""
    numbers = []
    for name, part, written in zip(columns["id"], parts, columns[column], strict=True):
        found = _NUMBER.fullmatch(written)
        if not found and (part == "train" or written.strip()):
            raise SplitError(
                f"{where} gives {name!r} the {column} {written!r}; each row of train has the "
                "number of the fold that it validates in. Correct it, or take the column away."
            )
        if found and part != "train":
            raise SplitError(
                f"{where} gives {name!r} the {column} {written!r}, but its part is "
                f"{part or 'empty'}: only rows of train are in folds. Empty the field, or make "
                "it train."
            )
        numbers.append(int(found[1]) if found else 0)
    return numbers


def _folds_of(where: str, column: str, train: np.ndarray, numbers: np.ndarray) -> Folds:
    present = np.unique(numbers)
    if len(present) < 2:
        raise SplitError(
            f"{where} has only one fold in {column}, which leaves nothing to train on. Number "
            "two folds at least, or take the column away."
        )
    return tuple((train[numbers != number], train[numbers == number]) for number in present)
