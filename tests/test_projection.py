"""Features on a plane: seeded, honest about the method, and NaN where there is nothing."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import featpipe.projection as projection
from featpipe.cache import FeatureCache
from featpipe.errors import CacheError, MissingExtraError, SettingsError
from featpipe.projection import project


def test_pca_keeps_what_varies_most(shapes_cache: FeatureCache) -> None:
    found = project(shapes_cache, method="pca")
    assert found.method == "PCA"
    X = shapes_cache.features().reshape(36, -1).astype(float)
    X -= X.mean(axis=0)
    left, values, _ = np.linalg.svd(X, full_matrices=False)
    expected = np.abs(left[:, :2] * values[:2])
    np.testing.assert_allclose(np.abs(found.points), expected, rtol=1e-2, atol=1e-3)
    assert found.explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-3)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_same_seed_gives_the_same_map(shapes_cache: FeatureCache, method: str) -> None:
    one, other = (project(shapes_cache, method=method, seed=3) for _ in range(2))
    assert np.array_equal(one.points, other.points)
    assert np.isfinite(one.points).all()
    document = one.to_dict("a cache")
    assert set(document) == {"method", "of", "points"}
    assert len(document["points"]) == 36


def test_rows_that_are_left_out_have_no_place(shapes_cache: FeatureCache) -> None:
    found = project(shapes_cache, rows=[1, 5, 7, 8, 20, 21], method="auto")
    assert found.method == "t-SNE"
    placed = np.flatnonzero(np.isfinite(found.points).all(axis=1))
    assert placed.tolist() == [1, 5, 7, 8, 20, 21]
    assert found.to_dict("x")["points"][0] is None
    assert project(shapes_cache, rows=[1, 5], method="tsne").method == "PCA"
    with pytest.raises(CacheError, match="a map needs two"):
        project(shapes_cache, rows=[1])


def test_many_rows_are_fitted_on_a_sample(
    shapes_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = int(np.prod(next(iter(shapes_cache.layers.values()))))
    monkeypatch.setattr(projection, "MOST_VALUES", 20 * width)
    monkeypatch.setattr(projection, "MOST_FOR_TSNE", 30)
    monkeypatch.setattr(projection, "_has_umap", lambda: False)
    found = project(shapes_cache)
    assert found.method == "PCA"
    assert np.isfinite(found.points).all()


def test_umap_is_taken_where_it_is_there(
    shapes_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Stand:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit_transform(self, X: np.ndarray) -> np.ndarray:
            return X[:, :2]

    module = ModuleType("umap")
    module.UMAP = Stand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(projection, "_has_umap", lambda: True)
    assert project(shapes_cache, method="umap", seed=7).method == "UMAP"
    assert asked["random_state"] == 7
    monkeypatch.setattr(projection, "MOST_FOR_TSNE", 30)
    assert project(shapes_cache).method == "UMAP"


def test_what_is_refused(shapes_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_has_umap", lambda: False)
    with pytest.raises(MissingExtraError, match=r"featpipe\[umap\]"):
        project(shapes_cache, method="umap")
    with pytest.raises(SettingsError, match="pca, tsne, umap"):
        project(shapes_cache, method="lda")
