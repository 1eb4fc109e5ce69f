"""What an extraction would do, without doing any of it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.backbones import Backbone
from featpipe.cache import FeatureCache, parts_folder
from featpipe.cache_stock import (
    Origin,
    Stock,
    digest_keys,
    open_old,
    precedent_of,
    read_begun,
    read_parts,
    refuse_other,
    refuse_other_images,
    refuse_other_spec,
)
from featpipe.device import available_cores
from featpipe.extractor import prepare
from featpipe.images import ImageSource, open_images
from featpipe.loading import scan
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.table import Status


@dataclass(frozen=True)
class Plan:
    """What an extraction would do; every count is of images.

    Attributes
    ----------
    images : int
        Rows of the table.
    unreadable : int
        Those whose bytes cannot be had.
    duplicates : int
        Those that are byte for byte another one.
    finished, unfinished, elsewhere : int
        Distinct images whose features are in the finished file, in the parts of an interrupted
        run, or only in another cache that may be reused.
    damaged : int
        Rows of the finished file that do not match their checksums.
    to_compute : int
        Distinct images that would go through the network.
    row_bytes : int
        Size of one row in the file.
    """

    images: int
    unreadable: int
    duplicates: int
    finished: int
    unfinished: int
    elsewhere: int
    damaged: int
    to_compute: int
    row_bytes: int


def plan_extraction(
    images: str | Path | ImageSource,
    backbone: str | Backbone,
    out: str | Path,
    settings: ExtractSettings | None = None,
    image_settings: ImageSettings | None = None,
) -> Plan:
    """Say what `extract_features` would compute, and write nothing.

    Parameters and errors are those of `extract_features`.
    """
    settings = settings or ExtractSettings()
    source, path = open_images(images, image_settings), Path(out)
    with contextlib.ExitStack() as stack:
        old = None if settings.overwrite else open_old(path)
        if old is not None:
            stack.enter_context(old)
        others = [stack.enter_context(FeatureCache.salvage(other)) for other in settings.reuse]
        folder = parts_folder(path)
        begun = read_begun(folder)
        extractor = prepare(backbone, settings, precedent_of(begun, old, others))
        spec, layers = extractor.spec, list(extractor.shapes)
        if old is not None:
            refuse_other_spec(old.spec, spec, str(path))
        for other in others:
            refuse_other(other, spec)

        def held(cache: FeatureCache) -> Origin:
            return Origin.of_cache(cache, map(cache.inspect, layers))

        digests, status, _ = scan(source, settings.workers or available_cores())
        read = status == Status.OK
        if old is not None:
            refuse_other_images(old, digests, read)
        origins = {"finished": [held(old)] if old else []}
        going_on = begun is not None and not begun.spec.differences(spec)
        parts = read_parts(folder)[0] if going_on else []
        origins["unfinished"] = list(map(Origin.of_part, parts))
        origins["elsewhere"] = [held(other) for other in others]
    left = np.unique(digest_keys(digests[read]))
    distinct, counts = len(left), {}
    for name, rows in origins.items():
        has = Stock(rows).has(left)
        counts[name] = int(has.sum())
        left = left[~has]
    damaged = int((old.ok & ~origins["finished"][0].usable).sum()) if old else 0
    row = sum(int(np.prod(shape)) for shape in extractor.stored.values())
    return Plan(
        len(source), int((~read).sum()), int(read.sum()) - distinct, **counts, damaged=damaged,
        to_compute=len(left), row_bytes=row * np.dtype(spec.dtype).itemsize,
    )  # fmt: skip
