"""Images that are there several times: never on both sides of a split, or only once."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featpipe.errors import TooFewError
from featpipe.folds import ALONE
from featpipe.split_file import Split
from featpipe.table import text_column

Division = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Copies:
    """Which rows show one picture, and what becomes of them when rows are divided.

    A division is made of one row of each picture; the others follow it, or are left out. So a
    few copies change neither the shares of the classes nor the size of a part. Where the parts
    are given, a picture belongs where it is scored: to test before val before train, and its
    copies in other parts are left out.

    Attributes
    ----------
    numbers : int array, shape (n,)
        Rows of the table that show one picture have one number.
    follow : bool
        Whether copies in the same part are kept there, beside the first, or left out.
    """

    numbers: np.ndarray
    follow: bool = True

    @classmethod
    def of(cls, pairs: np.ndarray, rows: int, follow: bool = True) -> "Copies":
        """Join pairs of rows, shape (pairs, 2): copies of a copy are copies."""
        return cls(joined(pairs, rows), follow)

    def join(self, groups: np.ndarray | None) -> np.ndarray:
        """Groups that no copies connect: object array of str, shape (n,).

        Parameters
        ----------
        groups : object array of str, shape (n,), or None
            As `featpipe.split.row_groups` gives them. Groups of which two rows show one picture
            become one, under one of their names.
        """
        rows = len(self.numbers)
        if groups is None:
            groups = text_column(f"{ALONE}{row}" for row in range(rows))
        names, codes = np.unique(groups.astype(str), return_inverse=True)
        own = np.arange(rows)
        to_picture = np.stack([own, rows + self.numbers], axis=1)
        to_group = np.stack([own, 2 * rows + codes], axis=1)
        united = joined(np.concatenate([to_picture, to_group]), 2 * rows + len(names))[:rows]
        # Of a group's names the last: those of rows without a group (`ALONE`) come first.
        last = np.zeros(int(united.max(initial=0)) + 1, np.int64)
        np.maximum.at(last, united, codes)
        return text_column(names[last[united]].tolist())

    def thin(self, split: Split) -> Split:
        """One row of each picture, in the part where it belongs."""
        kept = np.zeros(len(self.numbers), bool)
        seen: np.ndarray = np.zeros(int(self.numbers.max(initial=0)) + 1, bool)
        for part in (split.test, split.val, split.train):
            rows = part[~seen[self.numbers[part]]]
            kept[rows[np.unique(self.numbers[rows], return_index=True)[1]]] = True
            seen[self.numbers[rows]] = True
        return replace(
            split,
            train=split.train[kept[split.train]],
            val=split.val[kept[split.val]],
            test=split.test[kept[split.test]],
            folds=tuple((train[kept[train]], val[kept[val]]) for train, val in split.folds),
        )

    @contextlib.contextmanager
    def told_of(self, whole: Split) -> Iterator[None]:
        """Say of a division that is refused how many images did not count for it."""
        try:
            yield
        except TooFewError as error:
            rows = np.concatenate([whole.train, whole.val, whole.test])
            count = len(rows) - len(np.unique(self.numbers[rows]))
            if not count:
                raise
            what = "copy of another image does" if count == 1 else "copies of other images do"
            raise TooFewError(f"{error} ({count:,} {what} not count.)") from error

    def spread(self, divided: Split, whole: Split) -> Split:
        """Let copies follow what was divided, a thinned `whole`; the origin says how many."""
        part = np.full(len(self.numbers), -1)
        for number, rows in enumerate((whole.train, whole.val, whole.test)):
            part[rows] = number
        chosen = np.concatenate([divided.train, divided.val, divided.test])
        first = np.full(int(self.numbers.max(initial=0)) + 1, -1)
        first[self.numbers[chosen]] = chosen
        rest = np.setdiff1d(np.concatenate([whole.train, whole.val, whole.test]), chosen)
        rest = rest[first[self.numbers[rest]] >= 0]  # others are left out for reasons of their own
        leaders = first[self.numbers[rest]]
        same = (part[leaders] == part[rest]) & self.follow
        told = {
            "copies stay with what they are copies of": int(same.sum()),
            "copies of other images are left out": int((~same).sum()),
        }
        origin = divided.origin + "".join(
            f"; {count} {how}" for how, count in told.items() if count
        )
        rest, leaders = rest[same], leaders[same]

        def wider(rows: np.ndarray) -> np.ndarray:
            return np.sort(np.concatenate([rows, rest[np.isin(leaders, rows)]]))

        folds = tuple((wider(train), wider(val)) for train, val in divided.folds)
        return Split(wider(divided.train), wider(divided.val), wider(divided.test), origin, folds)

    def divide(self, rows: np.ndarray, divide: Division) -> tuple[np.ndarray, np.ndarray]:
        """Divide some rows in two without tearing a picture, such as a fold's training rows.

        Parameters
        ----------
        rows : int array, ascending
        divide : callable
            Of one row of each picture, gives those that are kept and those that are taken away,
            such as `featpipe.folds.divide`.

        Returns
        -------
        kept, taken : int arrays, ascending
        """
        whole = Split(rows, rows[:0], rows[:0], "")
        with self.told_of(whole):
            kept, taken = divide(self.thin(whole).train)
        found = self.spread(Split(kept, taken, rows[:0], ""), whole)
        return found.train, found.val


def joined(pairs: np.ndarray, count: int) -> np.ndarray:
    """Numbers of connected components of `count` things, given pairs of them: shape (count,)."""
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (count, count))
    numbers: np.ndarray = connected_components(links, directed=False)[1].astype(np.int64)
    return numbers
