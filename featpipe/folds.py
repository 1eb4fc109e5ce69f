"""Taking a share of the rows away, and making folds: each class alike, groups whole, seeded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold, StratifiedKFold

from featpipe.errors import SplitError, TooFewError

Folds = tuple[tuple[np.ndarray, np.ndarray], ...]
ALONE = "\0"  # how the name of a row without a group begins


@dataclass(frozen=True, eq=False)
class Strata:
    """What a division keeps alike on all sides, and what it does not tear apart.

    Attributes
    ----------
    codes : int array, shape (n,)
        The class, or another stratum, of each row of the table.
    classes : tuple of str, or None
        Names of the codes, each of which must be on every side. None: a stratum too rare for
        that is tolerated, and its rows go where the lot takes them.
    groups : object array of str, shape (n,), or None
    """

    codes: np.ndarray
    classes: tuple[str, ...] | None
    groups: np.ndarray | None

    def of(self, rows: np.ndarray, least: int) -> np.ndarray:
        """Codes of `rows`; where rare ones are tolerated, each has `least` rows or all."""
        codes: np.ndarray = self.codes[rows]
        if self.classes is not None or not len(codes):
            return codes
        _, codes, counts = np.unique(codes, return_inverse=True, return_counts=True)
        order = np.argsort(counts, kind="stable")
        rare = int((counts < least).sum())
        while 0 < rare < len(order) and counts[order[:rare]].sum() < least:
            rare += 1
        codes[np.isin(codes, order[:rare])] = order[0]
        return codes

    def how(self) -> str:
        """A few words for people."""
        alike = "stratified" if self.classes is None else "stratified by class"
        return alike if self.groups is None else f"{alike}, groups kept together"


def divide(
    rows: np.ndarray, strata: Strata, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take about `share` of the rows away, each class and every whole group alike.

    Returns
    -------
    kept, taken : int arrays, ascending

    Raises
    ------
    SplitError
        If a class is too rare to be on both sides, or the groups too uneven for the kept one to
        have every class.
    """
    if not share:
        return rows, rows[:0]
    smaller = max(min(share, 1 - share), 1 / len(rows))
    codes = strata.of(rows, int(np.ceil(1 / smaller)))
    present, counts = np.unique(codes, return_counts=True)
    if counts.min() < 2 or round(share * len(rows)) < len(present):
        names = strata.classes
        why = f": {names[present[counts.argmin()]]!r} has {counts.min()}" if names else ""
        raise TooFewError(
            f"{len(rows)} images in {len(present)} classes cannot give {share:.0%} away with every "
            f"class on both sides{why}. Add images, change the share, or leave it out with 0."
        )
    if strata.groups is None:
        kept, taken = _divide_classes(rows, codes, share, seed)
    else:
        tolerant = strata.classes is None
        kept, taken = _divide_groups(rows, codes, strata.groups[rows], share, seed, tolerant)
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
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    share: float,
    seed: int,
    tolerant: bool,
) -> tuple[np.ndarray, np.ndarray]:
    _, codes = np.unique(groups.astype(str), return_inverse=True)
    number = int(codes.max()) + 1
    folds = min(20, number, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        raise SplitError(
            f"{number} groups cannot be divided without tearing one apart; use --group none, or "
            "give groups that are smaller."
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = [fold for _, fold in splitter.split(rows, labels, codes)]
    take = min(max(1, round(share * folds)), folds - 1)
    chosen = np.concatenate(parts[:take])
    rest = np.setdiff1d(np.arange(len(rows)), chosen)
    lacking = not len(rest) if tolerant else set(labels[rest]) != set(labels)
    if not len(chosen) or lacking:
        raise SplitError(
            "The groups are too uneven to be divided with every class in both parts; use "
            "--group none, or give a split."
        )
    return rows[rest], rows[chosen]


def make_folds(rows: np.ndarray, strata: Strata, folds: int, repeats: int, seed: int) -> Folds:
    """Divide `rows` into folds by class, with whole groups, `repeats` times.

    Parameters
    ----------
    rows : int array, ascending
    strata : Strata
    folds : int
        At least 2.
    repeats : int
        Repetition ``i``, from 0, is shuffled by ``seed + i``.
    seed : int

    Returns
    -------
    tuple of (int array, int array)
        Training and validation rows of each fold, ascending; all folds of the first repetition,
        then those of the next.

    Raises
    ------
    SplitError
        If a class has fewer rows than there are folds, there are fewer groups than folds, or a
        class is in one group only.
    """
    codes = strata.of(rows, folds)
    present, counts = np.unique(codes, return_counts=True)
    if counts.min() < folds:
        names = strata.classes
        few = f"{names[present[counts.argmin()]]!r} has" if names else "there are"
        raise TooFewError(
            f"{folds} folds need {folds} images to train on in every class, but {few} "
            f"{counts.min()}. Take fewer folds, add images, or leave that class out."
        )
    groups, splitter = None, StratifiedKFold
    if strata.groups is not None:
        different, groups = np.unique(strata.groups[rows].astype(str), return_inverse=True)
        splitter = StratifiedGroupKFold
        if len(different) < folds:
            raise SplitError(
                f"{len(different)} groups cannot make {folds} folds without tearing one apart. "
                "Take fewer folds, use --group none, or give groups that are smaller."
            )
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for repeat in range(repeats):
        shuffled = splitter(folds, shuffle=True, random_state=(seed + repeat) % 2**32)
        found += [(rows[train], rows[val]) for train, val in shuffled.split(rows, codes, groups)]
    made = tuple(found)
    check_folds(made, strata, "Take fewer folds or another seed, or use --group none.")
    return made


def leave_one_group_out(rows: np.ndarray, strata: Strata) -> Folds:
    """Make a fold of each group, in the order of their names.

    Returns
    -------
    tuple of (int array, int array)
        Training and validation rows of each fold, ascending.

    Raises
    ------
    SplitError
        If there are not two groups at least, a row has none, or a class is in one group only.
    """
    if strata.groups is None:
        raise SplitError(
            "Leaving one group out needs groups, and these images have none: extract them with "
            "--group-column, say with --group REGEX where the ids name them, or use --folds."
        )
    groups = strata.groups[rows]
    alone = sum(name.startswith(ALONE) for name in groups)
    if alone:
        raise SplitError(
            f"{alone} of the {len(rows)} images to train on have no group that could be left out. "
            "Give every image a group, say with --group REGEX where the ids name them, or use "
            "--folds, where such images stand alone."
        )
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    if len(names) < 2:
        raise SplitError(
            f"All {len(rows)} images to train on are of the group {str(names[0])!r}; leaving it "
            "out leaves nothing. Give groups that are smaller, or use --folds with --group none."
        )
    found = LeaveOneGroupOut().split(rows, None, codes)
    made = tuple((rows[train], rows[val]) for train, val in found)
    ways = "Use --folds with --group none, add images of other groups, or leave the class out."
    check_folds(made, strata, ways, [f"the group {str(name)!r}" for name in names])
    return made


def check_folds(folds: Folds, strata: Strata, ways: str, left_out: Sequence[str] = ()) -> None:
    """Refuse folds that leave nothing to validate on, or a class untrained.

    Parameters
    ----------
    folds : tuple of (int array, int array)
    strata : Strata
    ways : str
        The ways out, for the message.
    left_out : sequence of str
        What each fold validates on, if that has a name.
    """
    for number, (train, val) in enumerate(folds, start=1):
        what = left_out[number - 1] if left_out else f"fold {number}"
        if not len(val):
            raise SplitError(f"Nothing is left for {what} to validate on. {ways}")
        if strata.classes is None:
            continue
        lacking = np.setdiff1d(strata.codes[val], strata.codes[train])
        if len(lacking):
            names = ", ".join(repr(strata.classes[code]) for code in lacking[:5])
            raise SplitError(
                f"Without {what}, whose images validate, no image of {names} is left to train "
                f"on. {ways}"
            )
