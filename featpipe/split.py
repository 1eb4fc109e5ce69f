"""Dividing rows into train, validation and test: stratified, group-aware, seeded."""

import re
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from featpipe.errors import SplitError
from featpipe.settings import TrainSettings
from featpipe.table import ImageTable, text_column


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of each part, ascending; no row is in two of them.

    Attributes
    ----------
    train, val, test : int arrays
        `val` and `test` may be empty.
    origin : str
        One sentence on how the rows were divided, for people.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    origin: str

    def parts(self) -> dict[str, np.ndarray]:
        """The parts that are not empty, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: rows for name, rows in parts.items() if len(rows)}


def split_rows(table: ImageTable, settings: TrainSettings, usable: np.ndarray) -> Split:
    """Divide the labelled, usable rows of a table.

    Parameters
    ----------
    table : ImageTable
    settings : TrainSettings
        ``split``, ``val``, ``test``, ``group`` and ``seed`` are used.
    usable : bool array, shape (n,)
        Rows that may be used at all (those with features).

    Raises
    ------
    SplitError
        If there are no labels, or too few rows of a class for the shares asked for.
    """
    rows = np.flatnonzero(usable & table.labelled)
    if table.labels is None or not len(rows):
        raise SplitError(
            "None of the images has both a label and features. Put them in one folder a class, "
            "or give a manifest with a label column."
        )
    if not (0 <= settings.val < 1 and 0 <= settings.test < 1 and settings.val + settings.test < 1):
        raise SplitError(
            f"val {settings.val:g} and test {settings.test:g} leave nothing to train on; both are "
            "shares between 0 and 1, together below 1."
        )
    groups = _groups(table, settings.group)
    if settings.split != "random" and table.splits is not None:
        return _given(table, settings, rows, groups)
    if settings.split == "given":
        raise SplitError("These images come with no split; use --split random with --val, --test.")
    train, test = _divide(table, rows, groups, settings.test, settings.seed)
    train, val = _divide(
        table, train, groups, settings.val / (1 - settings.test), settings.seed + 1
    )
    how = "stratified by class" + (", groups kept together" if groups is not None else "")
    return Split(train, val, test, f"random, {how}, seed {settings.seed}")


def _given(
    table: ImageTable, settings: TrainSettings, rows: np.ndarray, groups: np.ndarray | None
) -> Split:
    assert table.splits is not None
    parts = {name: rows[table.splits[rows] == name] for name in ("train", "val", "test")}
    train, val, test = parts["train"], parts["val"], parts["test"]
    if not len(train):
        raise SplitError("The given split has no training images; use --split random.")
    origin = "as given"
    if not len(test) and settings.test:
        train, test = _divide(table, train, groups, settings.test, settings.seed)
        origin += f", but test {settings.test:g} of train, seed {settings.seed}"
    if not len(val) and settings.val:
        train, val = _divide(table, train, groups, settings.val, settings.seed + 1)
        origin += f", but validation {settings.val:g} of train, seed {settings.seed}"
    unassigned = len(rows) - sum(map(len, parts.values()))
    if unassigned:
        origin += f"; {unassigned} images without a split are left out"
    return Split(train, val, test, origin)


def _groups(table: ImageTable, group: str) -> np.ndarray | None:
    if group == "none":
        return None
    if group == "auto":
        if table.groups is None:
            return None
        # A row without a group stands alone; rows that lack one have nothing in common.
        named = [name or f"\0{row}" for row, name in enumerate(table.groups)]
        return text_column(named)
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise SplitError(f"--group {group!r} is no regular expression: {error}.") from error
    if pattern.groups < 1:
        raise SplitError(f"--group {group!r} needs a group in parentheses: '([^/]+)_IMG_', say.")
    found = [pattern.search(name) for name in table.ids]
    missing = [
        name
        for name, match in zip(table.ids, found, strict=True)
        if match is None or match[1] is None
    ]
    if missing:
        raise SplitError(
            f"--group {group!r} does not match {len(missing)} of {len(table)} ids, such as "
            f"{missing[0]!r}."
        )
    return text_column(match[1] for match in found if match)


def _divide(
    table: ImageTable, rows: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take about `share` of the rows away, each class and every whole group alike."""
    assert table.labels is not None
    if not share:
        return rows, rows[:0]
    labels = table.labels[rows]
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or round(share * len(rows)) < len(classes):
        rarest = table.classes[classes[counts.argmin()]]
        raise SplitError(
            f"{len(rows)} images in {len(classes)} classes cannot give {share:.0%} away with every "
            f"class on both sides: {rarest!r} has {counts.min()}. Add images, change the share, "
            "or leave it out with 0."
        )
    if groups is None:
        kept, taken = _divide_classes(rows, labels, share, seed)
    else:
        kept, taken = _divide_groups(rows, labels, groups[rows], share, seed)
    return np.sort(kept), np.sort(taken)


def _divide_classes(
    rows: np.ndarray, labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    # train_test_split(stratify=...) may leave a rare class out of one side.
    random = np.random.default_rng(seed)
    counts = np.bincount(labels)
    exact = share * counts
    numbers = np.floor(exact).astype(int)
    # What rounding down leaves goes to the largest remainders, equal ones by lot.
    short = round(share * len(rows)) - int(numbers.sum())
    lot = random.permutation(len(counts))
    numbers[lot[np.argsort(-(exact - numbers)[lot], kind="stable")][: max(0, short)]] += 1
    numbers = np.clip(numbers, 1, counts - 1)
    kept, taken = [], []
    for label in np.unique(labels):
        members = random.permutation(rows[labels == label])
        taken.append(members[: numbers[label]])
        kept.append(members[numbers[label] :])
    return np.concatenate(kept), np.concatenate(taken)


def _divide_groups(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    number = len(set(groups))
    folds = min(20, number, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        raise SplitError(
            f"{number} groups cannot be divided without tearing one apart; use --group none, or "
            "give groups that are smaller."
        )
    _, codes = np.unique(groups.astype(str), return_inverse=True)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = [fold for _, fold in splitter.split(rows, labels, codes)]
    take = min(max(1, round(share * folds)), folds - 1)
    chosen = np.concatenate(parts[:take])
    rest = np.setdiff1d(np.arange(len(rows)), chosen)
    if not len(chosen) or set(labels[rest]) != set(labels):
        raise SplitError(
            "The groups are too uneven to be divided with every class in both parts; use "
            "--group none, or give a split."
        )
    return rows[rest], rows[chosen]
