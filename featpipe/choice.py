"""Choosing how to run a network: the fastest way that is true to the reference.

The reference is eager PyTorch in float32 behind exact decoding. How far another way is from it
differs from image to image, and a few images do not show the worst: a way that is not far within
the limit on the first few is tried on more.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featpipe.decode import Preprocessing
from featpipe.extractor import REFERENCE, Extractor, ready
from featpipe.fidelity import COSINE, Fidelity, compare_features
from featpipe.images import ImageSource
from featpipe.loading import ImageLoader, load_image

FEW, MORE = 4, 32  # images
FAR_WITHIN = 10  # times nearer to the reference than the limit: a few images are enough
WITHIN = 2  # times nearer, on more images; the worst of all may be worse than those
log = logging.getLogger(__name__)


class Trial:
    """Measures extractors on a few of the images; the reference is computed once.

    Parameters
    ----------
    extractor : Extractor
        Of the same network and preprocessing as those that are measured.
    source : ImageSource
    """

    def __init__(self, extractor: Extractor, source: ImageSource) -> None:
        self._reference, self._source = extractor.at(REFERENCE), source
        self._known: dict[int, dict[str, np.ndarray]] = {}

    def measure(self, extractor: Extractor) -> tuple[Fidelity | None, bool]:
        """How true an extractor, ready to run, is, and whether that is enough.

        Returns
        -------
        Fidelity or None
            None if no image can be decoded.
        bool
        """
        few = self._compare(extractor, FEW)
        if few is None or few.cosine < COSINE or few.margin >= FAR_WITHIN:
            return few, few is None or few.cosine >= COSINE
        more = self._compare(extractor, MORE)
        return more, more is not None and more.margin >= WITHIN

    def _compare(self, extractor: Extractor, count: int) -> Fidelity | None:
        rows = sample_rows(self._source, extractor.backbone.preprocessing, count)
        if not rows:
            return None
        if count not in self._known:
            self._known[count] = features_of(self._reference, self._source, rows)
        return compare_features(self._known[count], features_of(extractor, self._source, rows))


def choose(extractor: Extractor, source: ImageSource) -> tuple[Extractor, Fidelity | None]:
    """Measure an extractor on a few of the images, and take the next one if it is not true.

    Returns
    -------
    Extractor
        Ready to run.
    Fidelity or None
        None if it is the reference itself, or no image could be decoded.
    """
    trial = Trial(extractor, source)
    first: tuple[Extractor, Fidelity | None] | None = None
    while True:
        extractor = ready(extractor)
        way = extractor.execution
        if way == REFERENCE:
            return extractor, None
        measured, true = trial.measure(extractor)
        if true:
            if measured is not None:
                log.info("%s: %s.", way, measured)
            return extractor, measured
        first = first or (extractor, measured)
        said = f"{way}: {measured}; too far for the limit of {COSINE:g}"
        # Another runtime would round to as few digits.
        others = [
            other for other in extractor.others
            if (other.precision, other.decode) != (way.precision, way.decode)
            or way.precision == "float32"
        ]  # fmt: skip
        if not others:
            log.warning("%s. Going on with %s, as asked for.", said, first[0].execution)
            return first
        log.warning("%s. Trying %s.", said, others[0])
        extractor = extractor.at(others[0], tuple(others[1:]))


def sample_rows(source: ImageSource, preprocessing: Preprocessing, count: int) -> list[int]:
    """A few rows from all over the source whose images can be decoded."""
    tried = np.linspace(0, len(source) - 1, min(len(source), 4 * count)).astype(int)
    found: list[int] = []
    for row in np.random.default_rng(0).permutation(np.unique(tried)):
        if load_image(source, int(row), preprocessing).pixels is not None:
            found.append(int(row))
        if len(found) == count:
            break
    return found


def features_of(
    extractor: Extractor, source: ImageSource, rows: list[int]
) -> dict[str, np.ndarray]:
    """Features of a few rows whose images can be decoded."""
    images = ImageLoader(source, extractor.backbone.preprocessing, extractor.decoder)(rows)
    pixels = np.stack([image.pixels for image in images if image.pixels is not None])
    with extractor.forward as forward, ThreadPoolExecutor(forward.lanes) as pool:
        shares = np.array_split(pixels, min(forward.lanes, len(pixels)))
        found = list(pool.map(forward, shares))
    return {layer: np.concatenate([share[layer] for share in found]) for layer in found[0]}
