"""A cache's features on a plane, as results have it."""

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.errors import CacheError
from featpipe.projection import project
from featpipe.results import Map

MOST_DIMENSIONS = 8192  # of features that are laid out; activations of a cut have many more


def map_of(cache: FeatureCache, layer: str, method: str = "auto") -> Map | None:
    """The map of a layer; None where it has too many dimensions, or fewer than two rows do.

    Parameters
    ----------
    cache : FeatureCache
    layer : str
    method : str
        As `featpipe.projection.project` takes it.
    """
    if int(np.prod(cache.layers[layer])) > MOST_DIMENSIONS:
        return None
    of = f"{cache.spec.backbone.removeprefix('torchvision:')}, {layer}"
    try:
        found = project(cache, layer, method).to_dict(of)
    except CacheError:
        return None
    points = [None if one is None else (one[0], one[1]) for one in found["points"]]
    return Map(found["method"], of, points)
