"""One route closely: what it takes for what, and where it is surest and wrong."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from featpipe.report.charts import Chart
from featpipe.report.lines import reliability_chart, training_charts
from featpipe.results import Results
from featpipe.route_results import ClassRow, RouteResult

MOST_CLASSES = 25  # of a matrix; of more, the pairs that are confused most are listed
MOST_PAIRS = 60
MOST_MISTAKES = 24
MOST_BEHIND = 48  # pictures behind a cell
LEVELS = 8


@dataclass(frozen=True)
class Cell:
    """Images of one class that were taken for one: level, 0 to 8, is their share of the class."""

    true: int
    predicted: int
    count: int
    level: int
    behind: bool


@dataclass(frozen=True)
class Mistake:
    """An image, what it is said to be, and how surely."""

    row: int
    true: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class Closer:
    """What is shown of one route.

    Attributes
    ----------
    number : int
    route : RouteResult
    matrix : list of list of Cell
        Empty for many classes.
    pairs : list of Cell
        Instead of it, then.
    mistakes : list of Mistake
        The surest first.
    wrong : int
        Mistakes in all.
    cells : dict
        ``true-predicted`` to ``[row, confidence]`` of the images behind, the most telling first:
        mistakes from the surest on, what is right from the least sure on.
    """

    number: int
    route: RouteResult
    per_class: list[ClassRow]
    matrix: list[list[Cell]]
    pairs: list[Cell]
    mistakes: list[Mistake]
    wrong: int
    cells: dict[str, list[tuple[int, float]]]
    reliability: Chart | None
    training: list[Chart]


def look_closer(results: Results) -> list[Closer]:
    """Every route that has predictions, or figures of its classes."""
    return [
        _closer(results, number, route)
        for number, route in enumerate(results.finished)
        if route.predictions or route.per_class or route.confusion
    ]


def _closer(results: Results, number: int, route: RouteResult) -> Closer:
    labels, classes = results.items.labels, len(results.classes)
    behind: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    said = route.predictions
    if said:
        for row, predicted, sure in zip(said.rows, said.predicted, said.confidence, strict=True):
            if labels[row] >= 0:
                behind[labels[row], predicted].append((row, sure))
    for (true, predicted), some in behind.items():
        some.sort(key=lambda one: (one[1] if true == predicted else -one[1], one[0]))
    mistakes = [
        Mistake(row, true, predicted, sure)
        for (true, predicted), some in behind.items()
        if true != predicted
        for row, sure in some
    ]
    mistakes.sort(key=lambda one: (-one.confidence, one.row))
    counts = {pair: len(some) for pair, some in behind.items()}
    for true, line in enumerate(route.confusion or ()):
        counts |= {(true, predicted): count for predicted, count in enumerate(line) if count}
    of_class: dict[int, int] = defaultdict(int)
    for (true, _), count in counts.items():
        of_class[true] += count

    def cell(true: int, predicted: int) -> Cell:
        count = counts.get((true, predicted), 0)
        level = -(-LEVELS * count // of_class[true]) if count else 0
        return Cell(true, predicted, count, level, bool(behind.get((true, predicted))))

    matrix, pairs = [], []
    if counts and classes <= MOST_CLASSES:
        matrix = [[cell(true, other) for other in range(classes)] for true in range(classes)]
        shown = set(behind)
    else:
        confused = sorted((pair for pair in counts if pair[0] != pair[1]), key=lambda p: -counts[p])
        pairs = [cell(*pair) for pair in confused[:MOST_PAIRS]]
        shown = set(confused[:MOST_PAIRS])
    return Closer(
        number,
        route,
        route.per_class,
        matrix,
        pairs,
        mistakes[:MOST_MISTAKES],
        len(mistakes),
        {f"{t}-{p}": behind[t, p][:MOST_BEHIND] for t, p in sorted(shown) if behind.get((t, p))},
        reliability_chart(route.reliability) if route.reliability else None,
        training_charts(route),
    )


def wanted_rows(closers: list[Closer]) -> tuple[list[int], list[int]]:
    """Rows whose pictures are wanted large, the most telling first, and others behind cells."""
    large = [one.row for closer in closers for one in closer.mistakes]
    others: list[int] = []
    for closer in closers:
        for name, some in closer.cells.items():
            true, _, predicted = name.partition("-")
            (others if true == predicted else large).extend(row for row, _ in some)
    return large, others


def facts_of(closer: Closer) -> list[tuple[str, Any]]:
    """Calibration error, candidates and what else stands beside a route's name."""
    route = closer.route
    found: list[tuple[str, Any]] = []
    if closer.route.predictions:
        found.append(("images predicted", len(closer.route.predictions.rows)))
        found.append(("of them wrong", closer.wrong))
    if route.reliability and route.reliability.ece is not None:
        found.append(("calibration error", f"{100 * route.reliability.ece:.1f} points"))
    if route.candidates > 1:
        found.append(("settings tried", route.candidates))
    return found
