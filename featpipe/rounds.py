"""The rounds of a comparison: rows to fit on, to select with, and to score, for all routes."""

from dataclasses import dataclass

import numpy as np

from featpipe.copies import Copies
from featpipe.errors import SplitError
from featpipe.folds import Strata, divide
from featpipe.split import Split


@dataclass(frozen=True, eq=False)
class Round:
    """One training of every route; rows are the table's, ascending.

    Attributes
    ----------
    name : str
        ``fold-0007`` (of all repetitions), ``test`` or ``single``.
    fit : int array
        What is trained on.
    select : int array
        What chooses candidates and epochs, and calibrates; may be empty.
    scored : int array
        What is predicted. Only of one split without test rows it is `select`.
    repeat : int
        Which repetition of the folds.
    seed : int
        Is added to that of each route: a lucky draw is one fold's, not all folds'.
    """

    name: str
    fit: np.ndarray
    select: np.ndarray
    scored: np.ndarray
    repeat: int = 0
    seed: int = 0

    @property
    def pool(self) -> np.ndarray:
        """All rows whose labels the round may use."""
        return np.union1d(self.fit, self.select)

    @property
    def split(self) -> Split:
        """As stage two has it; what is scored is its test, unless that selects, too."""
        selects = len(self.scored) == len(self.select) and (self.scored == self.select).all()
        test = self.scored[:0] if selects else self.scored
        return Split(self.fit, self.select, test, self.name)

    @property
    def part(self) -> str:
        """What `split` calls the scored rows."""
        return "test" if len(self.split.test) else "val"


@dataclass(frozen=True, eq=False)
class Rounds:
    """All of them.

    Attributes
    ----------
    ranking : list of Round
        Whose scores rank the routes: those of the folds, or the only one.
    test : Round or None
        Of the test rows, where there are folds, too.
    part : str
        ``folds``, ``test`` or ``val``: what is ranked by.
    split : Split
    """

    ranking: list[Round]
    test: Round | None
    part: str
    split: Split

    @property
    def every(self) -> list[Round]:
        """The ranking ones, then the test."""
        return [*self.ranking, *([self.test] if self.test else [])]

    @property
    def once(self) -> list[int]:
        """Numbers of ranking rounds that score each row once: those of the first repetition."""
        return [number for number, one in enumerate(self.ranking) if one.repeat == 0]

    @property
    def design(self) -> dict[str, int]:
        """Folds of a repetition, and repetitions."""
        if self.part != "folds":
            return {"folds": 0, "repeats": 1}
        return {"folds": len(self.once), "repeats": self.ranking[-1].repeat + 1}

    @property
    def test_share(self) -> float:
        """Rows scored to rows learnt from, of a ranking round."""
        return float(np.mean([len(one.scored) / len(one.pool) for one in self.ranking]))


def make_rounds(
    split: Split, strata: Strata, val: float, seed: int, copies: Copies | None = None
) -> Rounds:
    """The rounds of a split.

    With folds, the rows that select are taken from the training rows of each fold, so that no
    scored row ever selects; validation rows that a split has beside its folds select in all.

    Parameters
    ----------
    split : Split
    strata : Strata
        What both sides have alike.
    val : float
        Share of a fold's training rows that selects; 0: none.
    seed : int
    copies : Copies
        Rows that show one picture, and so must not be on two sides.

    Raises
    ------
    SplitError
        If the rows of a fold cannot be divided so, or there is nothing to score.
    """
    if not split.folds:
        if not len(split.test) and not len(split.val):
            raise SplitError(
                "There is nothing to score: give --folds, --test above 0, or --val above 0."
            )
        scored = split.test if len(split.test) else split.val
        part = "test" if len(split.test) else "val"
        only = Round("single", split.train, split.val, scored)
        return Rounds([only], None, part, split)
    ranking: list[Round] = []
    seen: set[int] = set()
    repeat = 0
    for number, (train, scored) in enumerate(split.folds):
        if seen.intersection(scored.tolist()):
            repeat, seen = repeat + 1, set()
        seen.update(scored.tolist())
        fit, select = train, split.val
        if not len(split.val):
            fit, select = _divided(train, strata, val, seed, copies)
        drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        ranking.append(Round(f"fold-{number:04d}", fit, select, scored, repeat, drawn))
    test = None
    if len(split.test):
        fit, select = split.train, split.val
        if not len(split.val):
            fit, select = _divided(split.train, strata, val, seed, copies)
        test = Round("test", fit, select, split.test)
    return Rounds(ranking, test, "folds", split)


def _divided(
    rows: np.ndarray, strata: Strata, share: float, seed: int, copies: Copies | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to select with; copies follow what they are copies of."""
    if copies is None:
        return divide(rows, strata, share, seed + 1)
    return copies.divide(rows, lambda some: divide(some, strata, share, seed + 1))
