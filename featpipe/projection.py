"""Features on a plane: a map of the images, on which those that look alike lie together."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from featpipe.cache import FeatureCache
from featpipe.errors import CacheError, MissingExtraError, SettingsError

METHODS = ("auto", "pca", "tsne", "umap")
NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
MOST_FOR_TSNE = 3000  # rows: some twenty seconds of one core
FIRST = 50  # principal components that t-SNE and UMAP are given
MOST_VALUES = 1 << 27  # features that PCA is fitted on: 512 MB


@dataclass(frozen=True, eq=False)
class Projection:
    """A place on a plane for each row.

    Attributes
    ----------
    method : str
        ``PCA``, ``t-SNE`` or ``UMAP``.
    points : float32 array, shape (n, 2)
        NaN for rows without features.
    explained : float or None
        Share of the variance that the plane shows; of PCA only.
    """

    method: str
    points: np.ndarray
    explained: float | None = None

    def to_dict(self, of: str) -> dict[str, Any]:
        """Plain JSON values, as results have them; None for rows without features.

        Parameters
        ----------
        of : str
            Whose features these are.
        """
        points = [
            [round(float(x), 4), round(float(y), 4)] if np.isfinite(x) else None
            for x, y in self.points
        ]
        return {"method": self.method, "of": of, "points": points}


def project(
    cache: FeatureCache,
    layer: str | None = None,
    method: str = "auto",
    seed: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Projection:
    """Lay the plain features of a layer out on a plane.

    Parameters
    ----------
    cache : FeatureCache
    layer : str
        May be left out if there is only one.
    method : {"auto", "pca", "tsne", "umap"}
        auto: t-SNE of at most 3,000 rows; of more UMAP where umap-learn is installed, else PCA.
        PCA keeps distances as far as a plane can; the others keep neighbours, and what lies
        between their clusters means nothing.
    seed : int
        The same features, seed and versions give the same points.
    rows : sequence of int
        Rows to be laid out, all by default; others get NaN.

    Raises
    ------
    MissingExtraError
        If UMAP is asked for and not installed.
    CacheError
        If fewer than two rows have features.
    """
    if method not in METHODS:
        raise SettingsError(f"method is {method!r}; it can be {', '.join(METHODS)}.")
    if method == "umap" and not _has_umap():
        raise MissingExtraError("UMAP needs umap-learn: pip install 'featpipe[umap]'.")
    chosen = np.flatnonzero(cache.ok)
    if rows is not None:
        chosen = np.intersect1d(chosen, np.asarray(rows, np.int64))
    if len(chosen) < 2:
        raise CacheError(f"{len(chosen)} rows of {cache.path} have features; a map needs two.")
    if method == "auto":
        few = len(chosen) <= MOST_FOR_TSNE
        method = "tsne" if few else "umap" if _has_umap() else "pca"
    if method != "pca" and len(chosen) < 5:  # neighbours of so few are all the others
        method = "pca"
    reduced, explained = _components(cache, cache.layer(layer), chosen, seed)
    points = np.full((len(cache), 2), np.nan, np.float32)
    if method == "pca":
        points[chosen, : min(2, reduced.shape[1])] = reduced[:, :2]
        points[chosen, reduced.shape[1] :] = 0  # of one component the second is nothing
        return Projection(NAMES[method], points, explained)
    points[chosen] = _tsne(reduced, seed) if method == "tsne" else _umap(reduced, seed)
    return Projection(NAMES[method], points)


def _has_umap() -> bool:
    return find_spec("umap") is not None


def _components(
    cache: FeatureCache, layer: str, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """First principal components of some rows, and what the first two explain.

    Of many rows a sample, drawn by the seed, decides on the components.
    """
    width = int(np.prod(cache.layers[layer]))
    most = max(2, MOST_VALUES // width)
    fitted = rows
    if len(rows) > most:
        random = np.random.default_rng(seed)
        fitted = np.sort(random.choice(rows, most, replace=False))

    def read(some: np.ndarray) -> np.ndarray:
        return cache.features(layer, some).reshape(len(some), -1).astype(np.float32, copy=False)

    count = min(FIRST, len(fitted) - 1, width)
    pca = PCA(count, random_state=seed, svd_solver="auto")
    sample = read(fitted)
    if not np.ptp(sample, axis=0).any():  # all alike: nothing varies, and no share is explained
        return np.zeros((len(rows), 2), np.float32), 0.0
    pca.fit(sample)
    block = min(most, 4096)
    parts = [pca.transform(read(rows[at : at + block])) for at in range(0, len(rows), block)]
    return np.concatenate(parts), float(pca.explained_variance_ratio_[:2].sum())


def _tsne(reduced: np.ndarray, seed: int) -> np.ndarray:
    """van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008."""
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    with np.errstate(all="ignore"):
        points: np.ndarray = made.fit_transform(reduced)
    return points


def _umap(reduced: np.ndarray, seed: int) -> np.ndarray:
    """McInnes, Healy and Melville, "UMAP", 2018, arXiv:1802.03426."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba's, and that a seed allows one thread only
        from umap import UMAP

        neighbours = min(15, len(reduced) - 1)
        init = "spectral" if len(reduced) > 20 else "random"
        made = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1, init=init)
        points: np.ndarray = made.fit_transform(reduced)
    return points
