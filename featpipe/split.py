"""Dividing rows into train, validation, test and folds: stratified, group-aware, seeded."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from featpipe.copies import Copies
from featpipe.errors import SplitError
from featpipe.folds import ALONE, Strata, check_folds, divide, leave_one_group_out, make_folds
from featpipe.settings import TrainSettings
from featpipe.split_file import Split as Split
from featpipe.split_file import labelled_rows
from featpipe.split_file import load_split as load_split
from featpipe.split_file import save_split as save_split
from featpipe.table import SPLITS, ImageTable, text_column


def split_rows(
    table: ImageTable,
    settings: TrainSettings,
    usable: np.ndarray,
    *,
    strata: np.ndarray | None = None,
    copies: Copies | None = None,
) -> Split:
    """Divide the labelled, usable rows of a table.

    With folds, no validation part is taken from the training rows. A given one joins them
    where there is a test part too, and is the test part where there is none.

    Parameters
    ----------
    table : ImageTable
    settings : TrainSettings
        ``split``, ``val``, ``test``, ``group``, ``folds``, ``repeats``, ``leave_one_group_out``
        and ``seed`` are used. Of a split file, the parts stay what they are: no validation rows
        are taken from its training rows.
    usable : bool array, shape (n,)
        Rows that may be used at all (those with features).
    strata : int array, shape (n,)
        What to stratify by instead of the classes, such as sets of labels. Those too rare to be
        on every side are then tolerated.
    copies : Copies
        Rows that show one picture, and so must not be on two sides.

    Raises
    ------
    SplitError
        If there are no labels, too few rows or groups of a class for the shares or folds asked
        for, or the split file cannot be used.
    """
    rows = labelled_rows(table, usable)
    assert table.labels is not None
    folding = settings.folds > 0 or settings.leave_one_group_out
    val = 0.0 if folding else settings.val
    if not (0 <= val < 1 and 0 <= settings.test < 1 and val + settings.test < 1):
        raise SplitError(
            f"val {val:g} and test {settings.test:g} leave nothing to train on; both are "
            "shares between 0 and 1, together below 1."
        )
    groups = row_groups(table, settings.group)
    if copies is not None and groups is not None:
        groups = copies.join(groups)
    if strata is None:
        alike = Strata(table.labels, table.classes, groups)
    else:
        alike = Strata(strata, None, groups)
    how: Callable[[Split, TrainSettings, Strata], Split] = _filed
    if settings.split not in ("auto", "given", "random"):
        whole = load_split(settings.split, table, usable)
    elif settings.split != "random" and table.splits is not None:
        whole, how = _given(table, table.splits, rows), partial(_complete, val_share=val)
    elif settings.split == "given":
        raise SplitError("These images come with no split; use --split random with --val, --test.")
    else:
        origin = f"random, {alike.how()}, seed {settings.seed}"
        whole = Split(rows, rows[:0], rows[:0], origin)
        how = partial(_random, val_share=val)
    if copies is None:
        return how(whole, settings, alike)
    with copies.told_of(whole):
        divided = how(copies.thin(whole), settings, alike)
    return copies.spread(divided, whole)


def _random(split: Split, settings: TrainSettings, strata: Strata, val_share: float) -> Split:
    """Divide the training rows of a split that has no others."""
    train, test = divide(split.train, strata, settings.test, settings.seed)
    if settings.folds or settings.leave_one_group_out:
        return _folded(Split(train, split.val, test, split.origin), settings, strata)
    train, val = divide(train, strata, val_share / (1 - settings.test), settings.seed + 1)
    return Split(train, val, test, split.origin)


def _given(table: ImageTable, splits: np.ndarray, rows: np.ndarray) -> Split:
    train, val, test = (rows[splits[rows] == name] for name in SPLITS)
    if not len(train):
        raise SplitError("The given split has no training images; use --split random.")
    unassigned = len(rows) - len(train) - len(val) - len(test)
    left_out = f"; {unassigned} images without a split are left out" if unassigned else ""
    return Split(train, val, test, f"as given{left_out}")


def _filed(split: Split, settings: TrainSettings, strata: Strata) -> Split:
    """The split of a file, and what is asked for beyond it."""
    asked = settings.folds or settings.leave_one_group_out
    if split.folds and (asked or (settings.test and not len(split.test))):
        raise SplitError(
            f"{settings.split} has folds already, of all its training images. Leave --folds "
            "(or give --folds 0), --leave-one-group-out and --test out, or take its fold columns "
            "away."
        )
    if split.folds:
        check_folds(split.folds, strata, f"Change the fold columns of {settings.split}.")
        return split
    return _complete(split, settings, strata, 0.0)


def _complete(split: Split, settings: TrainSettings, strata: Strata, val_share: float) -> Split:
    """Take from train what is asked for and not given, and make the folds."""
    train, val, test, origin = split.train, split.val, split.test, split.origin
    folding = settings.folds or settings.leave_one_group_out
    if folding and len(val):
        if len(test) or settings.test:
            train, val = np.union1d(train, val), val[:0]
            origin += "; validation joins train"
        else:
            val, test = test, val
            origin += "; validation is the test, scored once at the end"
    if not len(test) and settings.test:
        train, test = divide(train, strata, settings.test, settings.seed)
        origin += f"; test {settings.test:g} of train, seed {settings.seed}"
    if folding:
        return _folded(Split(train, val, test, origin), settings, strata)
    if not len(val) and val_share:
        train, val = divide(train, strata, val_share, settings.seed + 1)
        origin += f"; validation {val_share:g} of train, seed {settings.seed}"
    return Split(train, val, test, origin)


def _folded(split: Split, settings: TrainSettings, strata: Strata) -> Split:
    if settings.leave_one_group_out:
        folds = leave_one_group_out(split.train, strata)
        how = f"{len(folds)} folds, each without one group"
    else:
        folds = make_folds(split.train, strata, settings.folds, settings.repeats, settings.seed)
        times = f" {settings.repeats} times" if settings.repeats > 1 else ""
        how = f"{settings.folds} folds{times}, {strata.how()}, seed {settings.seed}"
    return Split(split.train, split.val, split.test, f"{split.origin}; {how}", folds)


def row_groups(table: ImageTable, group: str) -> np.ndarray | None:
    """The group of each row by the setting ``group``, None where there are none.

    Returns
    -------
    object array of str, shape (n,), or None
        A row without a group has a name of its own, which begins with `ALONE`.

    Raises
    ------
    SplitError
        If `group` is no regular expression with a group, or does not match every id.
    """
    if group == "none":
        return None
    if group == "auto":
        if table.groups is None:
            return None
        # A row without a group stands alone; rows that lack one have nothing in common.
        named = [name or f"{ALONE}{row}" for row, name in enumerate(table.groups)]
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
