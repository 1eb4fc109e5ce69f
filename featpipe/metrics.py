"""How good predictions are, with an interval where there is one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)


@dataclass(frozen=True, eq=False)
class Scores:
    """What `score` found.

    Attributes
    ----------
    n : int
        Images scored.
    accuracy, balanced_accuracy, macro_f1 : float
        In [0, 1].
    interval : pair of float
        95 % Wilson interval of the accuracy, for these images as a sample of their like.
    confusion : int array, shape (classes, classes)
        Rows are true classes, columns predicted ones.
    per_class : list of dict
        ``class``, ``precision``, ``recall``, ``f1``, ``images``.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    confusion: np.ndarray
    per_class: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "accuracy_interval_95": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "confusion": self.confusion.tolist(),
            "per_class": self.per_class,
        }


def score(labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> Scores:
    """Score predicted class numbers against true ones.

    Parameters
    ----------
    labels, predicted : int arrays, shape (n,)
        Indices into `classes`.
    classes : tuple of str

    Notes
    -----
    Balanced accuracy is the mean recall of the classes that occur among `labels`; so is
    macro-F1. A class that was never predicted has a precision of 0.

    References
    ----------
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    present = np.unique(labels)
    every = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    right = int((labels == predicted).sum())
    interval = binomtest(right, len(labels)).proportion_ci(method="wilson")
    return Scores(
        n=len(labels),
        accuracy=float(accuracy_score(labels, predicted)),
        interval=(float(interval.low), float(interval.high)),
        balanced_accuracy=float(recall[present].mean()),
        macro_f1=float(
            f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
        ),
        confusion=confusion_matrix(labels, predicted, labels=every),
        per_class=[
            {
                "class": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "images": int(support[i]),
            }
            for i, name in enumerate(classes)
        ],
    )
