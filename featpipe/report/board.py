"""The leaderboard, and what lies between its routes, as the page shows them."""

from dataclasses import dataclass
from typing import Any

from featpipe.report.charts import Scale, ticks
from featpipe.report.words import between, large, megabytes, percent, points, seconds
from featpipe.results import Results
from featpipe.route_results import Difference, RouteResult

KINDS = {
    "head": "head on frozen features",
    "pixels": "head on pixels",
    "tail": "tail trained",
    "finetune": "fine-tuned",
    "scratch": "trained from scratch",
}


@dataclass(frozen=True)
class Cell:
    """A figure: what is read, and what it is sorted by."""

    text: str
    value: float | str | None
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """A value and its interval on a scale that rows share, in percent."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """A route of the leaderboard."""

    number: int
    route: RouteResult
    kind: str
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Gap:
    """A route less the best one."""

    name: str
    number: int
    text: str
    interval: str
    says: str
    strip: Strip
    sure: bool


@dataclass(frozen=True)
class Gaps:
    """Differences over one scale; ``zero`` and the ticks are places in percent."""

    zero: float
    ticks: list[tuple[float, str]]
    rows: list[Gap]
    method: str


COLUMNS = (
    ("name", "Route", True),
    ("accuracy", "Accuracy, %", False),
    ("difference", "To the best, points", False),
    ("cold", "Cold", False),
    ("warm", "Warm", False),
    ("speed", "Images/s", False),
    ("parameters", "Parameters", False),
    ("memory", "Memory", False),
)


def leaderboard(results: Results) -> tuple[list[tuple[str, str, bool]], list[Line]]:
    """Columns that some route has something in, and the finished routes, best first."""
    routes = results.finished
    lines = [
        Line(number, route, KINDS.get(route.kind, route.kind), _cells(route, number))
        for number, route in enumerate(routes)
    ]
    known = {name for line in lines for name, cell in line.cells.items() if cell.value is not None}
    if len(lines) < 2:
        known.discard("difference")
    return [column for column in COLUMNS if column[0] in known], lines


def _cells(route: RouteResult, number: int) -> dict[str, Cell]:
    accuracy, gap, spent = route.accuracy, route.difference, route.seconds
    if gap is None:
        difference = Cell("best" if number == 0 else "–", 0.0 if number == 0 else None)
    else:
        difference = Cell(points(gap.value), gap.value, _verdict(gap))
    return {
        "name": Cell(route.name, route.name),
        "accuracy": Cell(
            percent(accuracy.value if accuracy else None),
            accuracy.value if accuracy else None,
            between(accuracy.interval_95) if accuracy else "",
        ),
        "difference": difference,
        "cold": Cell(seconds(spent.cold if spent else None), spent.cold if spent else None),
        "warm": Cell(seconds(spent.warm if spent else None), spent.warm if spent else None),
        "speed": Cell(large(route.images_per_second), route.images_per_second),
        "parameters": Cell(large(route.parameters), route.parameters),
        "memory": Cell(megabytes(route.peak_bytes), route.peak_bytes),
    }


def _verdict(gap: Difference) -> str:
    if not gap.sure:
        return "cannot tell"
    return "behind" if gap.value < 0 else "ahead"


def _strip(scale: Scale, value: float, interval: tuple[float, float] | None) -> Strip:
    low, high = (None, None) if interval is None else map(scale, interval)
    return Strip(scale(value), low, high)


def gaps(results: Results) -> Gaps | None:
    """Differences to the best route, where there are some."""
    found = [(n, r, r.difference) for n, r in enumerate(results.finished) if r.difference]
    if not found:
        return None
    return drawn_gaps(
        [(route.name, n, gap.value, gap.interval_95, gap.sure) for n, route, gap in found],
        next((gap.method for _, _, gap in found if gap.method), ""),
    )


def drawn_gaps(
    found: list[tuple[str, int, float, tuple[float, float] | None, bool]],
    method: str = "",
    says: tuple[str, str] = ("behind", "ahead"),
) -> Gaps:
    """Differences over the scale that holds all of them, and 0."""
    ends = [end for _, _, value, span, _ in found for end in (value, *(span or ()))]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    room = 0.05 * ((high - low) or 0.02)
    low, high = low - room, high + room
    scale = Scale(low, high)
    rows = [
        Gap(
            name,
            number,
            points(value),
            between(span, signed=True),
            says[value > 0] if sure else "cannot tell",
            _strip(scale, value, span),
            sure,
        )
        for name, number, value, span, sure in found
    ]
    named = [
        (scale(at / 100), f"{at:+g}".replace("-", "−") if at else "0")
        for at in ticks(100 * low, 100 * high, 5)
    ]
    return Gaps(scale(0), named, rows, method)


def facts(results: Results) -> list[tuple[str, str]]:
    """What there was, and how it was divided, in a few words each."""
    images, design = results.images, results.design
    found = [("images", f"{images.count:,}"), ("classes", f"{len(images.classes):,}")]
    if images.unusable:
        found.append(("unusable", f"{images.unusable:,}"))
    if design.get("folds"):
        repeats = design.get("repeats") or 1
        times = f" × {repeats}" if repeats != 1 else ""
        found.append(("folds", f"{design['folds']}{times}"))
    counts: dict[str, int] = {}
    for part in results.items.parts:
        counts[part] = counts.get(part, 0) + 1
    for part, title in (("train", "trained on"), ("val", "validated on"), ("test", "tested on")):
        if counts.get(part):
            found.append((title, f"{counts[part]:,}"))
    if len(results.routes) > 1:
        found.append(("routes", str(len(results.routes))))
    return found


def conditions(results: Results) -> list[tuple[str, Any]]:
    """Everything the figures depend on: the whole's, then each route's."""
    whole: dict[str, Any] = {
        "created": results.created,
        "images": {
            "location": results.images.location,
            "count": results.images.count,
            "unusable": results.images.unusable,
            "classes": results.images.classes,
        },
        "design": results.design,
        "machine": results.machine,
    }
    found: list[tuple[str, Any]] = [("All routes", whole)]
    for route in results.routes:
        known = {
            "kind": route.kind,
            "backbone": route.backbone,
            "layer": route.layer,
            "head": route.head,
            "random weights": route.random_weights,
            "options": route.options,
            **route.conditions,
        }
        if route.test:
            kept = {k: v for k, v in route.test.items() if k not in ("per_class", "confusion")}
            known["test rows, scored once"] = kept
        found.append((route.name, {k: v for k, v in known.items() if v not in (None, {}, [])}))
    return found
