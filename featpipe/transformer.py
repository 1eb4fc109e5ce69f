"""A scikit-learn transformer: paths of images in, features out, each image computed once."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from featpipe.backbones import parse_backbone
from featpipe.device import available_cores
from featpipe.durable import user_folder
from featpipe.errors import ImagesError
from featpipe.feature_store import FeatureStore, open_store, refuse_unusable
from featpipe.images import file_source
from featpipe.loading import scan
from featpipe.settings import ExtractSettings
from featpipe.table import make_table


class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of a frozen backbone for a list of image paths, as a step of a pipeline.

    Whatever was computed once is found again by the digest of the image's bytes, by every
    fold, process and later run: there is one file of features for each backbone, its weights
    and settings, in the folder `cache`. Such a file has a row for every image that was ever
    asked for and grows with them; what it holds is noted whenever it grows, and it may be
    removed at any time. To be extended it is written anew as a whole, so give many images at
    once; for a stream of single ones there is `Classifier.predict`.

    Parameters
    ----------
    backbone : str
        ``[source:]name[@weights]``.
    layer : str
        The penultimate features if left out.
    pool : str
        ``auto``, ``flatten``, ``avg``, ``max``, ``none``; what is left of a row is flattened.
    weights : str
        Instead of ``@weights``.
    precision, decode, device, input_size, batch_size, workers
        As in `ExtractSettings`.
    cache : str or Path
        Folder of the files of features; ``features`` in ``$FEATPIPE_CACHE_DIR`` or else in
        the user's cache folder if left out.

    Attributes
    ----------
    n_features_in_ : int
        1, the path.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from featpipe import FeatureExtractor
    >>> model = make_pipeline(FeatureExtractor("mobilenet_v2"), LogisticRegression())
    >>> model.fit(["ant.jpg", "bee.jpg"], ["ant", "bee"])  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "vgg16",
        layer: str | None = None,
        pool: str = "auto",
        weights: str | None = None,
        precision: str = "auto",
        decode: str = "auto",
        device: str = "auto",
        input_size: int | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.pool = pool
        self.weights = weights
        self.precision = precision
        self.decode = decode
        self.device = device
        self.input_size = input_size
        self.batch_size = batch_size
        self.workers = workers
        self.cache = cache

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the settings and that `X` is a list of paths; nothing is learnt.

        Raises
        ------
        SettingsError
            If a parameter has a value it cannot have.
        ImagesError
            If `X` is no list of paths.
        """
        self._settings()
        _paths(X)
        self.n_features_in_ = 1
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features of the images, one row each in the order of `X`.

        Parameters
        ----------
        X : list, array or Series of str or Path, shape (n,)
            A path may be there more than once.

        Returns
        -------
        float32 array, shape (n, d)

        Raises
        ------
        ImagesError
            If a file is missing or cannot be read; a `DecodeError` if it is no picture. No
            row can be left out: `y` would not match.
        """
        settings = self._settings()
        asked = _paths(X)
        paths = list(dict.fromkeys(asked))
        source = file_source("the paths given", Path(), make_table(paths))
        digests, status, reasons = scan(source, settings.workers or available_cores())
        refuse_unusable(paths, status, reasons)
        rows = self._store().features(self._folder(), settings, paths, digests)
        place = {path: row for row, path in enumerate(paths)}
        found: np.ndarray = rows[[place[path] for path in asked]]
        return found

    def _settings(self) -> ExtractSettings:
        return ExtractSettings(
            layer=() if self.layer is None else (self.layer,),
            pool=self.pool,
            weights=self.weights,
            input_size=self.input_size,
            precision=self.precision,
            decode=self.decode,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
        )

    def _store(self) -> FeatureStore:
        weights = _weights_file(self.backbone, self.weights)
        return open_store(self.backbone, self._settings(), weights)

    def _folder(self) -> Path:
        return user_folder() / "features" if self.cache is None else Path(self.cache)

    @property
    def _n_features_out(self) -> int:
        """For `get_feature_names_out`; loads the backbone if nothing was computed yet."""
        return self._store().dimensions

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        tags.requires_fit = False
        return tags


def _weights_file(backbone: str, weights: str | None) -> tuple[int, int] | None:
    """What tells a weights file from one that has taken its name since."""
    named = weights or parse_backbone(backbone)[2]
    if named is None or not os.path.isfile(named):
        return None
    found = os.stat(named)
    return found.st_mtime_ns, found.st_size


def _paths(X: Any) -> list[str]:
    """Absolute paths of a list of them."""
    if isinstance(X, str | bytes | os.PathLike) or not isinstance(X, Iterable):
        raise ImagesError(f"X is {X!r}; give a list of image paths.")
    shape = getattr(X, "shape", (0,))
    if len(shape) != 1:
        raise ImagesError(f"X has shape {shape}; give one path an image, shape (n,).")
    try:
        paths = [os.path.abspath(os.fsdecode(path)) for path in X]
    except TypeError as error:
        raise ImagesError(f"X has to be a list of image paths: {error}.") from error
    if not paths:
        raise ImagesError("X has no images; give at least one path.")
    return paths
