"""What changed between two comparisons: routes, accuracies, images and conditions."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.stats import t

from featpipe.results import Results
from featpipe.route_results import Interval, RouteResult

FEWEST = 10  # images in both, for a paired difference
CONFIDENCE = 0.95
NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
# Of every run; they say nothing about what was run.
_PASSING = {
    "created",
    "finished",
    "seconds",
    "extraction_seconds",
    "throughput",
    "fidelity",
    "peak",
}


@dataclass(frozen=True)
class RouteChange:
    """A route that is in both.

    Attributes
    ----------
    name : str
    before, after : float
        Accuracies: of the images that are paired, where they are, which with repeated folds are
        of the first repetition; else as they were reported.
    difference : float
        After less before.
    interval_95 : pair of float or None
        Wide enough to hold for all routes that are in both.
    sure : bool
        Whether the interval leaves 0 out.
    method : str
        ``paired`` over the images that both predicted, or ``independent``.
    n : int
        Images that were paired.
    """

    name: str
    before: float
    after: float
    difference: float
    interval_95: Interval | None
    sure: bool
    method: str
    n: int

    @property
    def sentence(self) -> str:
        """All of it for people."""
        name, before, after = self.name, f"{100 * self.before:.1f}", f"{100 * self.after:.1f} %"
        span = ""
        if self.interval_95:
            low, high = (f"{100 * end:+.1f}" for end in self.interval_95)
            on = f" on {self.n:,} images in both" if self.method == "paired" else ""
            span = f" ({100 * self.difference:+.1f} points{on}, 95 % interval {low} to {high})"
        if self.difference == 0 and self.before == self.after:
            return f"{name} is as accurate as before, {after}."
        if not self.sure:
            return f"{name} went from {before} to {after}{span}: that may be chance."
        return f"{name} {'rose' if self.difference > 0 else 'fell'} from {before} to {after}{span}."


@dataclass(frozen=True)
class ConditionChange:
    """A condition that differs; None where there is none."""

    where: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Changes:
    """What `changes_between` found.

    Attributes
    ----------
    title, created : str
        Of the earlier comparison.
    added, removed : list of str
        Routes.
    routes : list of RouteChange
        Those of both that finished, in the order of the later one.
    images : dict of str to int
        ``added``, ``removed``, and ``relabelled`` of those in both.
    conditions : list of ConditionChange
    summary : list of str
        What there is to say of all but each route's accuracy.
    """

    title: str
    created: str
    added: list[str]
    removed: list[str]
    routes: list[RouteChange]
    images: dict[str, int]
    conditions: list[ConditionChange]
    summary: list[str]

    @property
    def sentences(self) -> list[str]:
        """All of it for people."""
        found = [*self.summary, *(one.sentence for one in self.routes)]
        if self.conditions:
            count = len(self.conditions)
            found.append(f"{count} {'condition differs' if count == 1 else 'conditions differ'}.")
        return found or ["Nothing."]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def changes_between(old: Results, new: Results) -> Changes:
    """Compare two comparisons, route by route of the same name.

    Where both predicted the same images, differences are paired over these; else the two are
    taken to be independent, which can only make intervals wider. Images of one group are taken
    together, and intervals hold for all routes at once (Bonferroni).

    References
    ----------
    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", Journal of Educational and Behavioral Statistics 2012. Newcombe,
    "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 1998, method 10.
    """
    before = {route.name: route for route in old.routes}
    after = {route.name: route for route in new.routes}
    labels_before, labels_after = _labels(old), _labels(new)
    both = [name for name, one in after.items() if one.accuracy and name in before]
    both = [name for name in both if before[name].accuracy]
    routes, groups = [], _groups(new)
    for name in both:
        earlier, route = before[name], after[name]
        right = _right(old, earlier, labels_before), _right(new, route, labels_after)
        routes.append(_route_change(earlier, route, *right, groups, len(both)))
    shared = labels_before.keys() & labels_after.keys()
    images = {
        "added": len(labels_after.keys() - shared),
        "removed": len(labels_before.keys() - shared),
        "relabelled": sum(labels_before[one] != labels_after[one] for one in shared),
    }
    added = [name for name in after if name not in before]
    removed = [name for name in before if name not in after]
    conditions = list(_conditions(old, new))
    summary = _summary(old, new, added, removed, images)
    return Changes(old.title, old.created, added, removed, routes, images, conditions, summary)


def _labels(results: Results) -> dict[str, str | None]:
    """Class of each image by its id."""
    names = [*results.classes, None]  # -1, too
    items = results.items
    return {one: names[label] for one, label in zip(items.ids, items.labels, strict=True)}


def _right(
    results: Results, route: RouteResult, labels: dict[str, str | None]
) -> dict[tuple[str, str | None], bool]:
    """Whether each predicted image was right, by its id and label."""
    if route.predictions is None:
        return {}
    ids, classes = results.items.ids, results.classes
    said = zip(route.predictions.rows, route.predictions.predicted, strict=True)
    return {(ids[row], labels[ids[row]]): classes[one] == labels[ids[row]] for row, one in said}


def _groups(results: Results) -> dict[str, str]:
    """Group of each image that has one, by its id."""
    items = results.items
    named = zip(items.ids, items.groups or (), strict=False)
    return {one: group for one, group in named if group}


def _route_change(
    old: RouteResult,
    new: RouteResult,
    before: dict[tuple[str, str | None], bool],
    after: dict[tuple[str, str | None], bool],
    groups: dict[str, str],
    routes: int,
) -> RouteChange:
    assert old.accuracy is not None
    assert new.accuracy is not None
    values = old.accuracy.value, new.accuracy.value
    shared = before.keys() & after.keys()
    difference, interval, method = values[1] - values[0], None, "independent"
    chance = (1 - CONFIDENCE) / 2 / routes
    if len(shared) >= max(FEWEST, 0.5 * len(after)):
        method = "paired"
        ordered = sorted(shared, key=str)
        moved = np.array([int(after[one]) - int(before[one]) for one in ordered])
        said = [groups.get(name, f"\0{number}") for number, (name, _) in enumerate(ordered)]
        codes = np.unique(said, return_inverse=True)[1]
        difference, interval = _paired(moved, codes, chance)
        values = _share(before, ordered), _share(after, ordered)
    elif old.accuracy.interval_95 and new.accuracy.interval_95:
        interval = _independent(*values, old.accuracy.interval_95, new.accuracy.interval_95, chance)
    sure = interval is not None and not interval[0] <= 0 <= interval[1]
    n = len(shared) if method == "paired" else 0
    return RouteChange(new.name, *values, difference, interval, sure, method, n)


def _share(
    right: dict[tuple[str, str | None], bool], images: list[tuple[str, str | None]]
) -> float:
    return sum(right[one] for one in images) / len(images)


def _paired(moved: np.ndarray, groups: np.ndarray, chance: float) -> tuple[float, Interval]:
    """Share won less share lost, and its interval, which holds it.

    Parameters
    ----------
    moved : int array, shape (n,)
        1 where an image was won, -1 where it was lost.
    groups : int array, shape (n,)
        Number of the group that each image is of.
    chance : float
        That what is true lies above the interval, and that it lies below.
    """
    n, won, lost = len(moved), int((moved > 0).sum()), int((moved < 0).sum())
    difference = (won - lost) / n
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = NormalDist().inv_cdf(1 - chance) * sqrt(
        max(0.0, up + down - (up - down) ** 2) / (n + 2)
    )
    middle = up - down
    low, high = min(middle - reach, difference), max(middle + reach, difference)
    sizes = np.bincount(groups)
    if 1 < len(sizes) < n:
        # Two more groups, of which one is won and one is lost, as of `featpipe.ranking`.
        spread = np.bincount(groups, weights=moved) - difference * sizes
        error = sqrt(float((spread**2).sum()) + 2 * (n / len(sizes)) ** 2) / n
        reach = float(t.ppf(1 - chance, len(sizes) - 1)) * error
        low, high = min(low, difference - reach), max(high, difference + reach)
    elif len(sizes) < n:
        low, high = -1.0, 1.0  # one group says nothing of others
    return difference, (max(-1.0, low), min(1.0, high))


def _independent(
    before: float, after: float, old: Interval, new: Interval, chance: float
) -> Interval:
    difference, wider = after - before, NormalDist().inv_cdf(1 - chance) / NORMAL
    low = difference - wider * sqrt((after - new[0]) ** 2 + (old[1] - before) ** 2)
    high = difference + wider * sqrt((new[1] - after) ** 2 + (before - old[0]) ** 2)
    return max(-1.0, low), min(1.0, high)


def _conditions(old: Results, new: Results) -> Iterator[ConditionChange]:
    before = dict(_described(old))
    after = dict(_described(new))
    both = {route.name for route in old.routes} & {route.name for route in new.routes}
    for key in dict.fromkeys([*before, *after]):
        route, path = key
        if route and route not in both:
            continue
        if before.get(key) != after.get(key):
            where = f"{route}: {path}" if route else path
            yield ConditionChange(where, before.get(key), after.get(key))


def _described(results: Results) -> Iterator[tuple[tuple[str, str], Any]]:
    """Each condition by its route, empty for all of them, and its place."""
    whole = {
        "images": {"location": results.images.location, "count": results.images.count},
        "design": results.design,
        "machine": results.machine,
    }
    for path, value in _leaves(whole):
        yield ("", path), value
    for route in results.routes:
        known = {
            "backbone": route.backbone,
            "layer": route.layer,
            "head": route.head,
            "options": route.options,
            "conditions": {k: v for k, v in route.conditions.items() if k != "machine"},
        }
        for path, value in _leaves(known):
            yield (route.name, path), value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for name, one in value.items():
        if name not in _PASSING:
            yield from _leaves(one, f"{path}.{name}" if path else str(name))


def _summary(
    old: Results,
    new: Results,
    added: list[str],
    removed: list[str],
    images: dict[str, int],
) -> list[str]:
    found = []
    if old.verdict.best != new.verdict.best and old.verdict.best and new.verdict.best:
        found.append(f"The best route is {new.verdict.best}; it was {old.verdict.best}.")
    if added:
        found.append(f"New: {', '.join(added)}.")
    if removed:
        found.append(f"No longer there: {', '.join(removed)}.")
    words = {"added": "new", "removed": "no longer there", "relabelled": "labelled otherwise"}
    told = [f"{count:,} {words[name]}" for name, count in images.items() if count]
    if told:
        found.append(f"Images: {', '.join(told)}.")
    return found
