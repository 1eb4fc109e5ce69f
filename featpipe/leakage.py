"""Rows of one patient on both sides of a split: how many there are, and what they are worth."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.calibration import wilson
from featpipe.metrics import Figure, corrected_interval
from featpipe.settings import TrainSettings
from featpipe.split import Split
from featpipe.targets import targets_of
from featpipe.train import train_head

RESAMPLES = 2000
FIGURES = ("random", "grouped", "difference", "of_folds")
# What the two intervals of a gap are, and what each is the answer to.
INTERVALS = {
    "difference": "bootstrap over whole groups: what other groups of the kind might give, scored "
    "by the heads that were trained here",
    "of_folds": "corrected resampled t over folds (Nadeau and Bengio): what heads trained anew on "
    "other images of the kind might give",
}


@dataclass(frozen=True)
class Leak:
    """What a split tears apart.

    Attributes
    ----------
    groups : int
        Of which rows are scored.
    torn : int
        Of these, those that were trained on, too.
    rows : int
        Scored rows of such a group.
    scored : int
        Rows scored.
    """

    groups: int
    torn: int
    rows: int
    scored: int


def leak_of(split: Split, part: str, groups: np.ndarray) -> Leak:
    """Count the groups that lie both in training and in the part that is scored.

    Parameters
    ----------
    split : Split
    part : {"val", "test", "folds"}
        Of folds, each is scored against its own training rows.
    groups : object array of str, shape (n,)
        Of every row of the table, as `featpipe.split.row_groups` gives them.
    """
    pairs = split.folds if part == "folds" else ((split.train, split.parts()[part]),)
    seen: set[str] = set()
    torn: set[str] = set()
    rows = scored = 0
    for train, held_out in pairs:
        both = set(groups[held_out]) & set(groups[train])
        seen, torn = seen | set(groups[held_out]), torn | both
        rows += sum(name in both for name in groups[held_out])
        scored += len(held_out)
    return Leak(len(seen), len(torn), rows, scored)


def by_group(values: np.ndarray, groups: np.ndarray, seed: int = 0, signed: bool = False) -> Figure:
    """The mean of some values, and its 95 % interval where whole groups are drawn anew.

    Rows of one group are alike, so that there is less in them than in as many that are not.

    A bootstrap has no width where no group differs from another, as at 0 and at 100 %; yet the
    next group may differ. The interval then reaches as far as Wilson's for that many groups of
    which none does. Shares are never told more narrowly than Wilson's interval of as many rows
    would be, each a group of its own.

    Parameters
    ----------
    values : array, shape (n,)
        Shares, in [0, 1].
    groups : object array of str, shape (n,)
    seed : int
    signed : bool
        They are differences of shares, in [-1, 1].

    References
    ----------
    Field and Welsh, "Bootstrapping clustered data", JRSS B 2007; Wilson, "Probable inference, the
    law of succession, and statistical inference", JASA 1927.
    """
    _, codes = np.unique(groups.astype(str), return_inverse=True)
    sizes, sums = np.bincount(codes), np.bincount(codes, weights=values)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    mean = float(np.mean(values))
    low, high = (float(end) for end in np.percentile(means, [2.5, 97.5]))
    if np.isclose(low, high, rtol=0, atol=1e-12):
        _, unseen = wilson(0, len(sizes))
        low, high = max(-1.0 if signed else 0.0, low - unseen), min(1.0, high + unseen)
    if not signed:
        alone = wilson(round(float(np.sum(values))), len(values))
        low, high = min(low, alone[0], mean), max(high, alone[1], mean)
    return Figure(mean, low, high)


@dataclass(frozen=True)
class Gap:
    """What a random split promises beyond one that keeps groups together.

    Attributes
    ----------
    random, grouped : Figure
        Accuracy over folds that tear groups apart, and over folds that do not; every row is
        predicted as often by both. Intervals are of a bootstrap over whole groups.
    difference : Figure
        Of the two, on the same rows, likewise: for patients as a sample of their like, by the
        heads that were trained here.
    of_folds : Figure
        The same difference, fold by fold, with an interval that knows what folds share: for heads
        that are trained anew on other images of the kind.
    groups, images, folds, repeats : int
    head : str
    """

    random: Figure
    grouped: Figure
    difference: Figure
    of_folds: Figure
    groups: int
    images: int
    folds: int
    repeats: int
    head: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, and what the two intervals of the difference are."""
        return {**asdict(self), "intervals_95": INTERVALS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Gap":
        """The inverse of `to_dict`."""
        given = {name: value for name, value in values.items() if name != "intervals_95"}
        figures = {name: Figure(*given[name]) for name in FIGURES}
        return cls(**{**given, **figures})


def measure_gap(
    cache: FeatureCache,
    groups: np.ndarray,
    group: str,
    head: str = "logistic",
    folds: int = 5,
    repeats: int = 3,
    settings: TrainSettings | None = None,
    **options: Any,
) -> Gap:
    """Cross-validate a head with groups torn apart, and with groups kept together.

    Parameters
    ----------
    cache : FeatureCache
    groups : object array of str, shape (n,)
        Of the table's rows.
    group : str
        The setting that gives these groups.
    head : str
        Without epochs, so that no row that is scored chooses anything.
    folds, repeats : int
    settings : TrainSettings
        ``layer``, ``seed``, ``device`` and ``memory`` are used; of several views, the plain one.
    **options
        The head's.

    References
    ----------
    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 2003 (folds).
    """
    base = replace(
        settings or TrainSettings(), split="random", val=0.0, test=0.0, folds=folds, views="plain"
    )
    truth = targets_of(cache.table).values
    right: dict[str, list[np.ndarray]] = {"none": [], group: []}
    by_fold: dict[str, list[float]] = {"none": [], group: []}
    for repeat in range(repeats):
        for how in right:
            asked = replace(base, group=how, seed=base.seed + repeat)
            _, result = train_head(cache, head, asked, **options)
            assert result.split is not None
            assert result.sweep is not None
            rows = result.split.train
            right[how].append(result.proba["folds"].argmax(axis=1) == truth[rows])
            by_fold[how] += result.sweep.chosen.folds["accuracy"]
    torn, kept = (np.mean(right[how], axis=0) for how in ("none", group))
    named = groups[rows]
    apart = np.subtract(by_fold["none"], by_fold[group]).tolist()
    return Gap(
        by_group(torn, named, base.seed), by_group(kept, named, base.seed),
        by_group(torn - kept, named, base.seed, signed=True),
        corrected_interval(apart, 1 / (folds - 1)),
        len(set(named)), len(rows), folds, repeats, head,
    )  # fmt: skip
