"""Rows whose features are most alike, block by block: candidates for being copies."""

from collections.abc import Callable

import numpy as np
import torch

from featpipe.cache import FeatureCache
from featpipe.device import choose_device

PROJECTED = 512  # dimensions in which neighbours are looked for
BLOCK_VALUES = 1 << 24  # similarities, or features, at once: 64 MB
Progress = Callable[[int, int], None]


class Likeness:
    """Cosines between rows of a cache, of plain features less their mean.

    What a network says of every picture alike is in the mean; without it, two pictures of one
    class have cosines about 0.5, copies about 0.9. Features of more than 512 dimensions are held
    as their Gaussian projection on 512, so that memory is bounded whatever the layer; cosines of
    chosen pairs are of all dimensions.

    Parameters
    ----------
    cache : FeatureCache
    layer : str
    rows : int array, ascending
        Of the table, all with features.
    seed : int
        Of the projection.
    device : str

    References
    ----------
    Johnson and Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984.
    """

    def __init__(
        self,
        cache: FeatureCache,
        layer: str | None,
        rows: np.ndarray,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self._cache, self._layer, self.rows = cache, cache.layer(layer), rows
        width = int(np.prod(cache.layers[self._layer]))
        self._block = max(1, min(4096, BLOCK_VALUES // max(width, 1)))
        projection = None
        if width > PROJECTED:
            random = np.random.default_rng(seed)
            projection = random.standard_normal((width, PROJECTED), np.float32)
        total = np.zeros(width)
        held = np.empty((len(rows), min(width, PROJECTED)), np.float32)
        for start in range(0, len(rows), self._block):
            some = self._features(rows[start : start + self._block])
            total += some.sum(axis=0, dtype=np.float64)
            held[start : start + len(some)] = some if projection is None else some @ projection
        self._mean = (total / max(1, len(rows))).astype(np.float32)
        held -= held.mean(axis=0)
        _normalise(held)
        self._held = torch.from_numpy(held).to(choose_device(device))

    def neighbours(
        self, count: int, floor: float, on_progress: Progress | None = None
    ) -> np.ndarray:
        """Pairs of rows of which one is among the `count` most alike of the other.

        Parameters
        ----------
        count : int
        floor : float
            The least cosine of a pair.
        on_progress : callable
            Is given rows done and rows in all.

        Returns
        -------
        int array, shape (pairs, 2)
            Rows of the table, the lower first, each pair once, in order.
        """
        number = len(self.rows)
        count = min(count, number - 1)
        if count < 1:
            return np.empty((0, 2), np.int64)
        size, found = max(1, BLOCK_VALUES // number), []
        for start in range(0, number, size):
            block = self._held[start : start + size]
            alike = block @ self._held.T
            own = torch.arange(len(block), device=alike.device)
            alike[own, own + start] = -torch.inf  # itself
            values, places = torch.topk(alike, count, dim=1)
            one, which = (values >= floor).nonzero(as_tuple=True)
            pairs = torch.stack([one + start, places[one, which]], dim=1)
            found.append(np.sort(pairs.cpu().numpy(), axis=1))
            if on_progress:
                on_progress(min(number, start + size), number)
        together = np.unique(np.concatenate(found), axis=0)
        pairs_of_rows: np.ndarray = self.rows[together].reshape(-1, 2)
        return pairs_of_rows

    def cosines(self, pairs: np.ndarray) -> np.ndarray:
        """Of pairs of rows of the table, shape (pairs, 2), by all dimensions: shape (pairs,)."""
        found = np.empty(len(pairs), np.float32)
        half = max(1, self._block // 2)
        for start in range(0, len(pairs), half):
            some = pairs[start : start + half]
            rows = self._features(some.ravel()) - self._mean
            _normalise(rows)
            found[start : start + half] = (rows[::2] * rows[1::2]).sum(axis=1)
        return np.clip(found, -1, 1)

    def _features(self, rows: np.ndarray) -> np.ndarray:
        found = self._cache.features(self._layer, rows)
        flat: np.ndarray = found.reshape(len(rows), -1).astype(np.float32, copy=False)
        return flat


def _normalise(rows: np.ndarray) -> None:
    """Divide rows by their lengths, in place; rows of zeros stay what they are."""
    for start in range(0, len(rows), 4096):
        some = rows[start : start + 4096]
        some /= np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)
