"""The page of a comparison, with everything that the features say about the images."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.changes import Changes
from featpipe.compare import Comparison
from featpipe.errors import FeatpipeError
from featpipe.images import ImageSource, open_images
from featpipe.originals import originals_of
from featpipe.report.features_map import map_of
from featpipe.report.page import write_page
from featpipe.report.shown import rows_shown
from featpipe.results import Map, Results, Suspect
from featpipe.route_results import RouteResult
from featpipe.settings import ImageSettings
from featpipe.suspects import list_suspects
from featpipe.thumbnails import write_thumbnails

log = logging.getLogger(__name__)

THUMBNAILS = "thumbnails"
MOST_PICTURES = 6000  # that are made for one page


def save_comparison(
    folder: str | Path,
    comparison: Comparison,
    images: str | Path | ImageSource,
    image_settings: ImageSettings | None = None,
    changes: Changes | None = None,
) -> Path:
    """Write ``report.html`` of a comparison, and its results again with what the page shows.

    Parameters
    ----------
    folder : str or Path
        Of the comparison; is also given ``thumbnails``.
    comparison : Comparison
    images : str, Path or ImageSource
    image_settings : ImageSettings
    changes : Changes
        Since an earlier comparison.

    Returns
    -------
    Path
        The page.
    """
    folder = Path(folder)
    results = described(comparison)
    source = open_images(images, image_settings)
    rows = rows_shown(results)[:MOST_PICTURES]
    write_thumbnails(originals_of(source, rows), folder / THUMBNAILS, rows)
    results = replace(results, thumbnails={"folder": THUMBNAILS})
    results.save(folder)
    return write_page(results, folder, None, changes)


def described(comparison: Comparison) -> Results:
    """Results with a map of the best route's features, and labels that it does not believe."""
    results = comparison.results
    best = next(iter(results.finished), None)
    if best is not None and not results.suspects:
        held = comparison.held[best.name]
        labels = np.array(results.items.labels)[held.rows]
        found = list_suspects(held.rows, labels, held.proba)
        suspects = [Suspect(one.row, one.given, one.suggested, one.score) for one in found]
        results = replace(results, suspects=suspects)
    if results.map is None:
        results = replace(results, map=_map(results, comparison.caches))
    return results


def _map(results: Results, caches: Mapping[str, Path]) -> Map | None:
    """The features of the best route that has some, on a plane."""
    with_features = (r for r in results.finished if r.backbone in caches and r.kind == "head")
    route: RouteResult | None = next(with_features, None)
    if route is None or route.backbone is None:
        return None
    try:
        with FeatureCache.open(caches[route.backbone]) as cache:
            layer = route.layer if route.layer in cache.layers else cache.layer(None)
            assert layer is not None
            found = map_of(cache, layer)
    except FeatpipeError as error:  # a page without a map is a page
        log.warning("There is no map of the features: %s", error)
        return None
    fits = found is not None and len(found.points) == len(results.items.ids)
    return found if fits else None
