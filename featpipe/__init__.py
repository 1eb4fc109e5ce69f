"""Run a frozen vision backbone once, cache what it sees, and train on that in seconds.

Stage one, `extract_features`, turns a folder or table of images into a feature cache: one
HDF5 file with the features, ids, labels and everything they depend on. Stage two,
`train_head`, turns a cache into a `Classifier`: one safetensors file that labels new images.
`compare_routes` does both for several backbones and heads, trains a CNN from scratch beside
them, and says what each is worth on the same rows.

>>> from featpipe import extract_features, train_head  # doctest: +SKIP
>>> cache = extract_features("photos", "resnet50", "photos.h5")  # doctest: +SKIP
>>> classifier, result = train_head(cache, "linear")  # doctest: +SKIP
>>> result.scores["val"].accuracy  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featpipe.backbones import load_backbone
    from featpipe.cache import FeatureCache
    from featpipe.classifier import Classifier
    from featpipe.compare import compare_routes
    from featpipe.decode import Preprocessing
    from featpipe.errors import FeatpipeError
    from featpipe.extract import extract_features
    from featpipe.images import open_images
    from featpipe.settings import ExtractSettings, ImageSettings, ScratchSettings, TrainSettings
    from featpipe.train import train_head
    from featpipe.transformer import FeatureExtractor
    from featpipe.verification import verify

_HOMES = {
    "Classifier": "classifier",
    "ExtractSettings": "settings",
    "FeatpipeError": "errors",
    "FeatureCache": "cache",
    "FeatureExtractor": "transformer",
    "ImageSettings": "settings",
    "Preprocessing": "decode",
    "ScratchSettings": "settings",
    "TrainSettings": "settings",
    "compare_routes": "compare",
    "extract_features": "extract",
    "load_backbone": "backbones",
    "open_images": "images",
    "train_head": "train",
    "verify": "verification",
}

__all__ = [
    "Classifier",
    "ExtractSettings",
    "FeatpipeError",
    "FeatureCache",
    "FeatureExtractor",
    "ImageSettings",
    "Preprocessing",
    "ScratchSettings",
    "TrainSettings",
    "compare_routes",
    "extract_features",
    "load_backbone",
    "open_images",
    "train_head",
    "verify",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; the command line's --help must not wait for it.
    if name in _HOMES:
        return getattr(import_module(f"featpipe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'featpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
