"""What is to be predicted: one class an image, or several labels."""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit, softmax

from featpipe.errors import SplitError
from featpipe.table import ImageTable, sort_classes

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Targets:
    """The classes, and what is true of each image of a table.

    Attributes
    ----------
    values : int64 array, shape (n,), or float32 array, shape (n, classes)
        Numbers of classes, -1 where there is none; or 0 and 1 for each label.
    classes : tuple of str
    """

    values: np.ndarray
    classes: tuple[str, ...]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.values.ndim == 2

    @cached_property
    def strata(self) -> np.ndarray | None:
        """For multi-label targets, a number for each set of labels; shape (n,)."""
        if not self.multilabel:
            return None
        numbers: np.ndarray = np.unique(self.values, axis=0, return_inverse=True)[1].ravel()
        return numbers


def targets_of(table: ImageTable, separator: str | None = None) -> Targets:
    """The targets of a table.

    Parameters
    ----------
    table : ImageTable
    separator : str or None
        What stands between several labels of an image, in what the table has for a class:
        ``cat|dog``. A separator alone is an image without any of the labels.

    Raises
    ------
    SplitError
        If there are no labels, or they hold fewer than two when divided.
    """
    if table.labels is None:
        raise SplitError(
            "None of the images has a label. Put them in one folder a class, or give a manifest "
            "with a label column."
        )
    if separator is None:
        return Targets(table.labels, table.classes)
    if not separator.strip():
        raise SplitError("The separator is empty; give what stands between labels, such as '|'.")
    if not any(separator in name for name in table.classes):
        log.warning("No class contains the separator %r: every image has one label.", separator)
    sets = [
        {part.strip() for part in name.split(separator) if part.strip()} for name in table.classes
    ]
    classes = sort_classes(set().union(*sets))
    if len(classes) < 2:
        raise SplitError(
            f"Divided at {separator!r}, the classes hold {len(classes)} label; several labels an "
            "image need at least two. Leave the separator out for one class an image."
        )
    columns = np.zeros((len(table.classes) + 1, len(classes)), np.float32)  # the last: unlabelled
    for row, labels in enumerate(sets):
        columns[row, [classes.index(label) for label in labels]] = 1
    return Targets(columns[table.labels], classes)


def probabilities(
    logits: np.ndarray, multilabel: bool = False, trained_on: np.ndarray | None = None
) -> np.ndarray:
    """Softmax of each row, shape (n, classes), float64; for labels the sigmoid of each.

    A class that is not among those of `trained_on`, an int array, gets no probability.
    """
    logits = logits.astype(np.float64)
    if trained_on is not None and not multilabel:
        logits[:, np.bincount(trained_on, minlength=logits.shape[1]) == 0] = -np.inf
    if multilabel:
        return expit(logits)  # type: ignore[no-any-return]
    return softmax(logits, axis=1)  # type: ignore[no-any-return]
