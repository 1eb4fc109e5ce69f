"""The table of images: one row an image, in an order that never depends on the disk."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from featpipe.errors import ImagesError

UNLABELLED = -1
SPLITS = ("train", "val", "test")


class Status(IntEnum):
    """What became of a row; the numbers are part of the file format."""

    OK = 0
    MISSING = 1  # no file of that name
    UNREADABLE = 2  # the operating system would not give its bytes
    UNDECODABLE = 3  # the bytes are no picture
    NOT_FINITE = 4  # the network gave NaN or infinity

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Names and labels of images; row ``i`` of every column is the same image.

    Attributes
    ----------
    ids : object array of str, shape (n,)
        Unique, stable names: relative paths with ``/``, or positions in a data set. Bytes
        that are not UTF-8 are kept as surrogate escapes.
    labels : int64 array, shape (n,), or None
        Index into `classes`; -1 for a row without a label. None if no row has one.
    classes : tuple of str
        Sorted class names; numbers sort as numbers.
    splits : object array of str, shape (n,), or None
        ``train``, ``val``, ``test``, or empty where the source gives none.
    groups : object array of str, shape (n,), or None
        Rows of one group belong together (one patient, one scene).
    """

    ids: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    splits: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "splits", "groups"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.ids):
                raise ImagesError(f"{len(column)} {name} for {len(self.ids)} images.")
        if len(set(self.ids)) != len(self.ids):
            names, counts = np.unique(self.ids.astype(str), return_counts=True)
            twice = ", ".join(names[counts > 1][:3])
            raise ImagesError(
                f"{int((counts > 1).sum())} images are listed more than once ({twice}). "
                "A row's features and label must belong to one image: list each once."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> np.ndarray:
        """Boolean array, shape (n,): which rows have a label."""
        if self.labels is None:
            return np.zeros(len(self), dtype=bool)
        known: np.ndarray = self.labels != UNLABELLED
        return known

    def class_counts(self) -> dict[str, int]:
        """Images of each class, in the order of `classes`."""
        if self.labels is None:
            return {}
        counts = np.bincount(self.labels[self.labelled], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))


def make_table(
    ids: Sequence[str],
    labels: Sequence[str | None] | None = None,
    splits: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> ImageTable:
    """Build an `ImageTable` from columns of text; a label of None means unlabelled."""
    codes: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if labels is not None and any(label is not None for label in labels):
        classes = sort_classes({label for label in labels if label is not None})
        index = {name: code for code, name in enumerate(classes)}
        codes = np.array(
            [UNLABELLED if label is None else index[label] for label in labels], dtype=np.int64
        )
    if splits is not None and not any(splits):
        splits = None
    return ImageTable(
        text_column(ids),
        codes,
        classes,
        None if splits is None else text_column(splits),
        None if groups is None else text_column(groups),
    )


def text_column(values: Iterable[str | bytes]) -> np.ndarray:
    """An object array of texts; numpy's own text types would drop trailing NULs."""
    column = list(values)
    result = np.empty(len(column), dtype=object)
    result[:] = column
    return result


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """Class names in order: as whole numbers if all of them are, else by code point."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def canonical_split(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for the usual spellings, None for anything else."""
    spellings = {"valid": "val", "validation": "val", "dev": "val", "training": "train"}
    name = name.strip().lower()
    name = spellings.get(name, name)
    return name if name in SPLITS else None
