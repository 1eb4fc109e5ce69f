"""Which views of each image a fit draws from, and which it is scored by.

Features of several views are held as rows of their own, called items: image `i` has the items from
``i * held`` on, the plain one first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.errors import SettingsError
from featpipe.settings import TrainSettings
from featpipe.tasks import Task, every_view


@dataclass(frozen=True)
class Viewing:
    """How many views of each image are used.

    Attributes
    ----------
    trained : int
        That a fit sees, 1 being the plain one alone.
    scored : int
        Over which probabilities are averaged, 1 being the plain one alone.
    """

    trained: int = 1
    scored: int = 1

    @classmethod
    def of(cls, cache: FeatureCache, settings: TrainSettings) -> "Viewing":
        """What the settings ask for of a cache.

        Raises
        ------
        SettingsError
            If views are to be averaged, and there is only one.
        """
        if settings.tta and cache.views == 1:
            raise SettingsError(
                f"tta averages over an image's views, and {cache.path} has only the plain one. "
                "Extract with --views and --augment, or leave --tta out."
            )
        return cls(
            cache.views if settings.views == "all" else 1, cache.views if settings.tta else 1
        )

    @property
    def held(self) -> int:
        """Items of each image."""
        return max(self.trained, self.scored)

    def task(self, task: Task) -> Task:
        """The same task of items, given one of images."""
        held = self.held
        scored = every_view(task.scored * held, self.scored)
        return Task(task.train * held, task.select * held, scored, self.trained, task.seed)

    def means(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Probabilities of images, given those of scored items, block by block of any length."""
        rest: np.ndarray | None = None
        for block in blocks:
            whole = block if rest is None or not len(rest) else np.concatenate([rest, block])
            count = len(whole) // self.scored
            rest = whole[count * self.scored :]
            yield self.mean(whole[: count * self.scored])

    def mean(self, proba: np.ndarray) -> np.ndarray:
        """Probabilities of images, shape (n, classes), given those of (n * scored) items."""
        if self.scored == 1:
            return proba
        averaged: np.ndarray = proba.reshape(-1, self.scored, proba.shape[1]).mean(axis=1)
        return averaged


def features_of(
    cache: FeatureCache, layer: str, rows: np.ndarray, views: int = 1, halves: bool = False
) -> np.ndarray:
    """Features of the first views of some rows of the table, image by image.

    Returns
    -------
    array, shape (rows * views, values of the layer)
        float32, or with `halves` of the type they are stored in.
    """
    dtype = np.dtype(cache.spec.dtype if halves else np.float32)
    if views == 1:
        found = cache.features(layer, rows)
    else:
        found = np.empty((len(rows), views, *cache.layers[layer]), dtype)
        for view in range(views):
            found[:, view] = cache.features(layer, rows, view)
    return found.reshape(len(rows) * views, -1).astype(dtype, copy=False)


def items_of(
    cache: FeatureCache,
    layer: str,
    rows: np.ndarray,
    items: np.ndarray,
    held: int,
    halves: bool = False,
) -> np.ndarray:
    """Features of some items of some rows of the table, shape (items, values).

    float32, or with `halves` of the type they are stored in.
    """
    images, views = np.divmod(items, held)
    dtype = np.dtype(cache.spec.dtype if halves else np.float32)
    found = np.empty((len(items), int(np.prod(cache.layers[layer]))), dtype)
    for view in np.unique(views):
        here = views == view
        some = cache.features(layer, rows[images[here]], int(view))
        found[here] = some.reshape(len(some), -1)
    return found
