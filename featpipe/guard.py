"""Images that are there twice, looked for once before a comparison divides its rows."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.duplicates import Duplicates, Pair, find_duplicates
from featpipe.durable import save_json
from featpipe.images import ImageSource
from featpipe.results import Leaks
from featpipe.split import Split
from featpipe.table import ImageTable
from featpipe.typed import read

log = logging.getLogger(__name__)

FILE, FORMAT = "leaks.json", 1
WIDEST = 8192  # values of an image's features that are compared with all others


def duplicates_in(
    source: ImageSource, caches: Sequence[FeatureCache], content: str, folder: Path
) -> Duplicates:
    """Pairs of images that show one picture; those of the same images are found once.

    They are kept, so that a route more, whose features may find others, divides no row otherwise.

    Parameters
    ----------
    source : ImageSource
    caches : sequence of FeatureCache
        At least one. That of learnt weights is compared which is named first.
    content : str
        Digest of the images.
    folder : Path
        Where they are kept.
    """
    known = known_duplicates(source, content, folder)
    if known is not None:
        return known
    narrow = [one for one in caches if _width(one) <= WIDEST] or list(caches)
    pixels = [one for one in narrow if one.spec.backbone.startswith("pixels:")]
    learnt = [one for one in narrow if one not in pixels and not one.spec.random_weights]
    chosen = (learnt or pixels or narrow)[0]
    found = find_duplicates(chosen, source)
    pairs: list[dict[str, Any]] = [
        {
            "rows": list(pair.rows),
            "exact": pair.exact,
            "similarity": pair.similarity,
            "distance": pair.distance,
            "mirrored": pair.mirrored,
        }
        for pair in found.pairs
    ]
    by = chosen.spec.backbone
    save_json(folder / FILE, {"format": FORMAT, "content": content, "by": by, "pairs": pairs})
    return found


def known_duplicates(source: ImageSource, content: str, folder: Path) -> Duplicates | None:
    """Those that were found before; None if nobody has looked."""
    pairs = _read(folder / FILE, content)
    return None if pairs is None else Duplicates(pairs, len(source)).on(source.table)


def same_files(digests: np.ndarray, table: ImageTable) -> Duplicates:
    """Pairs of images that are equal byte for byte, for which nothing has to be computed.

    Parameters
    ----------
    digests : uint8 array, shape (n, bytes)
        As `featpipe.loading.scan` gives them: zeros where there are no bytes.
    table : ImageTable
    """
    rows = np.flatnonzero(digests.any(axis=1))
    _, first, numbers = np.unique(digests[rows], axis=0, return_index=True, return_inverse=True)
    leaders = rows[first[numbers.ravel()]]
    pairs = [
        Pair((int(leader), int(row)), exact=True, similarity=1.0)
        for leader, row in zip(leaders, rows, strict=True)
        if leader != row
    ]
    return Duplicates(tuple(pairs), len(table)).on(table)


def leaks_of(found: Duplicates, table: ImageTable, split: Split, policy: str) -> Leaks:
    """The pairs, and what they are across, as results have them.

    Across a split are pairs that the table's own split tears apart, or, where it has none and they
    are kept as they are, the comparison's.
    """
    torn = found if table.splits is not None else found.on(table, split)
    leaks: Leaks = read(Leaks, torn.to_dict(policy))
    return leaks


def _width(cache: FeatureCache) -> int:
    return int(np.prod(list(cache.layers.values())[-1]))


def _read(path: Path, content: str) -> tuple[Pair, ...] | None:
    try:
        document = json.loads(path.read_bytes())
        if (document["format"], document["content"]) != (FORMAT, content):
            return None
        pairs = [
            Pair(
                (int(one["rows"][0]), int(one["rows"][1])), bool(one["exact"]),
                float(one["similarity"]), int(one["distance"]), bool(one["mirrored"]),
            )
            for one in document["pairs"]
        ]  # fmt: skip
        return tuple(pairs)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
