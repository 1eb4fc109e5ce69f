"""Which route is best, by how much, and whether the data can tell.

Two things are uncertain: which images were scored, and which were trained on. The first is a
bootstrap over the scored images (over whole groups where there are some), of all pairs of routes at
once: an interval is as wide as the most extreme of all pairs asks for, so that it holds for
whatever route turns out best. The second is a t interval over the folds that knows what folds
share, for as many comparisons as there are. The interval that is told reaches as far as either.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm, t

from featpipe.bootstrap import affordable, resampled
from featpipe.calibration import wilson
from featpipe.metrics import Figure, corrected_interval
from featpipe.route_results import Difference

RESAMPLES = 4000
CONFIDENCE = 0.95
OF_BOTH = (
    "the wider of a bootstrap over the scored images, of all pairs of routes at once, and a t "
    "interval over the folds, corrected for the rows that they share"
)
OF_IMAGES = (
    "a bootstrap over the scored images, of all pairs of routes at once; for these trainings, one "
    "of each"
)


NORMAL = float(norm.ppf((1 + CONFIDENCE) / 2))


def accuracy_interval(values: Sequence[float], test_share: float, images: int) -> Figure:
    """The mean over folds and its 95 % interval, never narrower than the images allow.

    Parameters
    ----------
    values : sequence of float
        One a fold; of a single one the interval is Wilson's alone.
    test_share : float
        As of `featpipe.metrics.corrected_interval`.
    images : int
        Different ones that were scored; as many as they are worth, where they are of groups.
    """
    mean, low, high = corrected_interval(values, test_share)
    assert mean is not None
    least, most = wilson(round(mean * images), images)
    low, high = least if low is None else min(low, least), most if high is None else max(high, most)
    return Figure(mean, max(0.0, low), min(1.0, high))


def worth(right: np.ndarray, groups: np.ndarray | None) -> int:
    """As many independent images as these say as much about an accuracy as.

    Parameters
    ----------
    right : float array, shape (images,)
        How often each was right, in [0, 1].
    groups : array, shape (images,), or None
        Images of one group may be right or wrong together.

    References
    ----------
    Kish, "Survey Sampling", 1965 (design effect). Korn and Graubard, "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data", Survey
    Methodology 1998 (the t quantile in it).
    """
    images = len(right)
    if groups is None:
        return images
    codes = np.unique(groups.astype(str), return_inverse=True)[1]
    sizes = np.bincount(codes).astype(float)
    count = len(sizes)
    if count == images:
        return images
    # Two more groups, one wholly right and one wholly wrong: that all are right would else say
    # that groups never differ.
    typical = images / count
    sums = np.append(np.bincount(codes, weights=right), [typical, 0.0])
    sizes = np.append(sizes, [typical, typical])
    mean = sums.sum() / sizes.sum()
    variance = float(((sums - mean * sizes) ** 2).sum() / sizes.sum() ** 2)
    narrower = (NORMAL / float(t.ppf((1 + CONFIDENCE) / 2, max(1, count - 1)))) ** 2
    return max(1, min(images, int(narrower * mean * (1 - mean) / variance)))


def differences(
    right: np.ndarray,
    folds: np.ndarray,
    test_share: float,
    best: int,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> list[Difference | None]:
    """Each route's accuracy less the best one's; None for the best.

    Parameters
    ----------
    right : float array, shape (routes, images)
        How often each image was right, over the repetitions, in [0, 1].
    folds : float array, shape (routes, folds)
        Accuracy of each; one column if there are no folds.
    test_share : float
    best : int
    groups : array, shape (images,), or None
        Images of one group are drawn together.
    seed : int
        Of the bootstrap.

    References
    ----------
    Westfall and Young, "Resampling-Based Multiple Testing", 1993 (single-step max T).
    Hsu, "Multiple Comparisons", 1996 (why the best one needs all pairs).
    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 2003.
    Smyth, "Linear models and empirical Bayes methods", 2004 (variances that lean on each other).
    """
    routes = len(right)
    if routes == 1:
        return [None]
    values, errors, reach, likely = _over_images(right, groups, seed)
    found: list[Difference | None] = []
    several = folds.shape[1] > 1
    for route in range(routes):
        if route == best:
            found.append(None)
            continue
        paired = folds[route] - folds[best]
        value = float(paired.mean()) if several else float(values[route] - values[best])
        error = errors[route, best]
        low, high, p = value - reach * error, value + reach * error, likely(value, error)
        if several:
            others = np.delete(folds, [route, best], axis=0) - folds[best]
            least, most, at_folds = _over_folds(paired, others, test_share)
            low, high, p = min(low, least), max(high, most), max(p, at_folds)
        low, high = max(-1.0, low), min(1.0, high)
        sure = bool(low > 0 or high < 0)
        method = OF_BOTH if several else OF_IMAGES
        found.append(Difference(value, (float(low), float(high)), float(p), sure, method))
    return found


def _over_folds(
    paired: np.ndarray, others: np.ndarray, test_share: float
) -> tuple[float, float, float]:
    """A t interval of differences for as many comparisons as there are with the best, and p.

    A few folds say little of how much they vary, so the variance is the mean of this difference's
    own and of what the `others`, shape (routes, folds), have on average.
    """
    count, comparisons = len(paired), 1 + len(others)
    variance, freedom = float(np.var(paired, ddof=1)), count - 1
    if len(others):
        variance = (variance + float(np.var(others, axis=1, ddof=1).mean())) / 2
        freedom *= 2
    error, value = float(np.sqrt((1 / count + test_share) * variance)), float(paired.mean())
    reach = float(t.ppf(1 - (1 - CONFIDENCE) / 2 / comparisons, freedom)) * error
    if not error:
        return value, value, float(not value)
    p = 2 * float(t.sf(abs(value) / error, freedom)) * comparisons
    return value - reach, value + reach, min(1.0, p)


def _over_images(
    right: np.ndarray, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray, float, Callable[[float, float], float]]:
    """Means, standard errors of all pairs, how many of them an interval reaches, and p values."""
    routes, images = right.shape
    codes = np.arange(images)
    if groups is not None:
        codes = np.unique(groups.astype(str), return_inverse=True)[1]
    count = int(codes.max()) + 1
    sizes = np.bincount(codes).astype(float)
    sums = np.stack([np.bincount(codes, weights=one) for one in right])
    values = sums.sum(axis=1) / images
    # Two more groups, each of which only one route has right: where few images differ, or none,
    # that none else would is not known.
    pairs = sums[:, None] - sums[None]
    spread = pairs - (values[:, None] - values[None])[..., None] * sizes
    typical = images / count
    errors = np.sqrt((spread**2).sum(axis=2) + 2 * typical**2) / images
    upper = np.triu_indices(routes, 1)
    most = []
    for weights in resampled(count, max(200, affordable(RESAMPLES, count)), seed):
        means = (sums @ weights) / (sizes @ weights)
        moved = np.abs((means[:, None] - means[None]) - (values[:, None] - values[None])[..., None])
        most.append((moved / errors[..., None])[upper].max(axis=0))
    extreme = np.sort(np.concatenate(most))
    # Of routes that are right on the same images nothing ever moves; that is not to know exactly.
    reach = max(float(np.quantile(extreme, CONFIDENCE)), NORMAL)

    def likely(value: float, error: float) -> float:
        above = len(extreme) - np.searchsorted(extreme, abs(value) / error, side="left")
        drawn = float((above + 1) / (len(extreme) + 1))
        return max(drawn, 2 * float(norm.sf(abs(value) / error)))

    return values, errors, reach, likely
