"""The map: images as points of a plane, near each other where their features are."""

from dataclasses import dataclass

import numpy as np

from featpipe.report.charts import colour_of, outline
from featpipe.results import Results

WIDTH, HEIGHT, MARGIN = 1000, 640, 24
MOST_POINTS = 5000


@dataclass(frozen=True)
class Layer:
    """The points of one class, as one path."""

    number: int
    name: str
    colour: int
    count: int
    path: str


@dataclass(frozen=True)
class Scatter:
    """A map to draw.

    Attributes
    ----------
    method, of : str
    layers : list of Layer
    points : list of (row, x, y)
        In the frame's own units.
    known : int
        Images that have a place, of which at most 5,000 are drawn.
    wrong : str
        A path of rings around what the best route takes for something else.
    """

    method: str
    of: str
    layers: list[Layer]
    points: list[tuple[int, int, int]]
    known: int
    wrong: str


def make_scatter(results: Results) -> Scatter | None:
    """The map of results, None where they have none."""
    if results.map is None:
        return None
    places = list(enumerate(results.map.points))
    known = np.array(
        [(row, *place) for row, place in places if place and np.isfinite(place).all()], dtype=float
    )
    if not len(known):
        return None
    count = len(known)
    if count > MOST_POINTS:
        chosen = np.random.default_rng(0).choice(count, MOST_POINTS, replace=False)
        known = known[np.sort(chosen)]
    rows = known[:, 0].astype(int)
    xy = known[:, 1:]
    low, high = np.percentile(xy, 0.5, axis=0), np.percentile(xy, 99.5, axis=0)
    width = np.where(high > low, high - low, 1)
    share = np.clip((xy - low) / width, -0.02, 1.02)  # what lies far out is drawn at the rim
    x = np.rint(MARGIN + share[:, 0] * (WIDTH - 2 * MARGIN)).astype(int)
    y = np.rint(HEIGHT - MARGIN - share[:, 1] * (HEIGHT - 2 * MARGIN)).astype(int)
    labels = np.array([results.items.labels[row] for row in rows])
    size = 5.8 if len(rows) <= 600 else 4.8 if len(rows) <= 2000 else 4.0
    layers = []
    for label in sorted(set(labels.tolist())):
        of_class = np.flatnonzero(labels == label)
        number = label if label >= 0 else len(results.classes)
        name = results.classes[label] if label >= 0 else "no label"
        path = "".join(outline(number, x[i], y[i], size) for i in of_class)
        layers.append(Layer(label, name, colour_of(number), len(of_class), path))
    mistaken = _mistaken(results)
    rings = "".join(
        outline(0, x[i], y[i], size + 4) for i, row in enumerate(rows.tolist()) if row in mistaken
    )
    points = list(zip(rows.tolist(), x.tolist(), y.tolist(), strict=True))
    return Scatter(results.map.method, results.map.of, layers, points, count, rings)


def _mistaken(results: Results) -> set[int]:
    best = next(iter(results.finished), None)
    if best is None or best.predictions is None:
        return set()
    said = best.predictions
    labels = results.items.labels
    return {
        row
        for row, predicted in zip(said.rows, said.predicted, strict=True)
        if 0 <= labels[row] != predicted
    }
