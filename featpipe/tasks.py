"""What is fitted many times over the same features: folds, repeats, label budgets."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Task:
    """Rows of one fit, as numbers of rows of a shared array of features.

    Attributes
    ----------
    train : int64 array
    select : int64 array
        Rows that select the epoch, for heads that have epochs; may be none.
    scored : int64 array
        Rows whose classes are predicted. In cross-validation they also select.
    views : int
        Rows that there are of each image, of which `train` names the first, the plain one; those
        of an image follow each other.
    seed : int
        Is added to that of heads that have one, so that no two fits need draw the same.
    """

    train: np.ndarray
    select: np.ndarray
    scored: np.ndarray
    views: int = 1
    seed: int = 0

    @property
    def every(self) -> np.ndarray:
        """All rows to train on, image by image: int64 array, shape (images * views,)."""
        return every_view(self.train, self.views)


def every_view(rows: np.ndarray, views: int) -> np.ndarray:
    """Rows and those that follow them, `views` of each: int64 array, shape (rows * views,)."""
    return rows if views == 1 else (rows[:, None] + np.arange(views)).ravel()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one head made of one task.

    Attributes
    ----------
    head, task : int
        Their numbers.
    proba : float64 array, shape (scored rows, classes), or None
        None if the fit failed; `note` says how.
    seconds : float
        Of fitting and predicting; heads that are fitted together share theirs evenly.
    epochs : int
        How many the fit that was kept has seen; 0 for heads without epochs.
    note : str
    """

    head: int
    task: int
    proba: np.ndarray | None
    seconds: float
    epochs: int = 0
    note: str = ""
