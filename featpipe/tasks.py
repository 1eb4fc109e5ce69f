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
    """

    train: np.ndarray
    select: np.ndarray
    scored: np.ndarray


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
