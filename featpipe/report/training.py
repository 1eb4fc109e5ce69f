"""The page of one training."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featpipe.cache import FeatureCache
from featpipe.errors import ImagesError
from featpipe.images import ImageSource
from featpipe.originals import originals_of
from featpipe.report.features_map import map_of
from featpipe.report.one_route import results_of
from featpipe.report.page import write_page
from featpipe.report.shown import rows_shown
from featpipe.result import Result
from featpipe.thumbnails import save_thumbnails, write_thumbnails

log = logging.getLogger(__name__)

MOST_PICTURES = 2000  # that are made for one training
MOST_NEIGHBOURS = 1000  # rows whose map keeps neighbours, which takes seconds; else PCA


def save_report(
    folder: str | Path,
    result: Result,
    classes: Sequence[str],
    images: FeatureCache | ImageSource,
    title: str,
    kind: str | None = None,
    part: str | None = None,
) -> Path:
    """Write ``report.html`` of a training, with pictures if its images are found.

    Parameters
    ----------
    folder : str or Path
        Is also given ``results.json``, ``results.csv`` and ``thumbnails``, of which the page is
        made again by ``featpipe report``.
    result : Result
    classes : sequence of str
    images : FeatureCache or ImageSource
        What was trained on.
    title : str
    kind, part : str
        As in `results_of`.

    Returns
    -------
    Path
        The page.
    """
    folder = Path(folder)
    if isinstance(images, FeatureCache):
        location = str(images.conditions.get("images", {}).get("location", ""))
        results = results_of(result, classes, images.table, title, location, kind, images.ok, part)
        layer = str(result.conditions.get("layer") or images.layer(None))
        method = "auto" if int(images.ok.sum()) <= MOST_NEIGHBOURS else "pca"
        results = replace(results, map=map_of(images, layer, method))
    else:
        results = results_of(
            result, classes, images.table, title, images.location, kind, None, part
        )
    rows = rows_shown(results)[:MOST_PICTURES]
    try:
        if isinstance(images, FeatureCache):
            save_thumbnails(images, folder / "thumbnails", rows)
        else:
            write_thumbnails(originals_of(images, rows), folder / "thumbnails", rows)
    except ImagesError as error:
        log.info("The page has no pictures: %s", error)
    results.save(folder)
    return write_page(results, folder)
