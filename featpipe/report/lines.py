"""The charts of results: label budget, cost, training and reliability."""

from collections.abc import Callable, Sequence
from typing import Any

from featpipe.report.charts import (
    Chart,
    Mark,
    Scale,
    Series,
    colour_of,
    polyline,
    ticks,
)
from featpipe.report.words import between, percent, seconds
from featpipe.results import Results
from featpipe.route_results import Reliability, RouteResult

FEW = 10  # predictions of a bin; those of fewer are faint
MOST_MARKS = 40  # of a line; a longer one is drawn without
TIMES = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36000.0, 360000.0)  # seconds
BETWEEN = (0.02, 0.05, 0.2, 0.5, 2.0, 5.0, 20.0, 30.0, 120.0, 300.0, 1200.0, 2400.0, 7200.0)
Point = tuple[float, float, tuple[float, float] | None, str]  # x, y, interval of y, what it says


def budget_chart(results: Results) -> Chart | None:
    """Accuracy by labelled images a class; "all of them" is set beyond the largest number."""
    routes = [(number, route) for number, route in _numbered(results) if len(route.budget) > 1]
    sizes = sorted({one.size for _, route in routes for one in route.budget if one.size})
    if not routes or not sizes or sizes[0] < 1:
        return None
    every = any(one.size is None for _, route in routes for one in route.budget)
    counts = results.images.classes.values()
    whole = max(sum(counts) / max(1, len(counts)), 1.5 * sizes[-1])
    series, rows = [], []
    for number, route in routes:
        points: list[Point] = []
        for one in sorted(route.budget, key=lambda one: one.size or float("inf")):
            name = "all" if one.size is None else str(one.size)
            text = f"{percent(one.value)} % ({between(one.interval_95)})"
            says = f"{route.name}, {name} a class: {text}"
            points.append((float(one.size or whole), one.value, one.interval_95, says))
            rows.append([route.name, name, percent(one.value), between(one.interval_95)])
        series.append((route.name, number, points))
    margin = ((whole if every else sizes[-1]) / sizes[0]) ** 0.03  # intervals stand side by side
    shown: list[float] = []
    for size in sizes:
        if not shown or size >= 1.7 * shown[-1]:  # nearer ones would print over each other
            shown.append(float(size))
    labels = [(size, f"{size:g}") for size in shown if not every or size * 1.4 <= whole]
    labels += [(whole, "all")] if every else []
    return _drawn(
        "Accuracy by the number of labelled images a class, a line for each route.",
        ("labelled images a class", "accuracy, %"),
        series,
        (sizes[0] / margin, (whole if every else sizes[-1]) * margin),
        labels,
        ["route", "images a class", "accuracy, %", "95 % interval"],
        rows,
        logarithmic=True,
    )


def cost_chart(results: Results) -> Chart | None:
    """What accuracy each route has reached by a time."""
    routes = [(number, route) for number, route in _numbered(results) if route.cost]
    times = [one.seconds for _, route in routes for one in route.cost]
    if not times:
        return None
    least = max(min(times), 1e-3)
    series, rows = [], []
    for number, route in routes:
        points: list[Point] = []
        cost = sorted(route.cost, key=lambda one: one.seconds)
        for place, one in enumerate(cost, 1):
            on = "scored images" if place == len(cost) else "selecting images"
            says = f"{route.name}: {percent(one.accuracy)} % of the {on}"
            says += f" after {seconds(one.seconds)}"
            points.append((max(one.seconds, least), one.accuracy, None, says))
            rows.append([route.name, seconds(one.seconds), percent(one.accuracy), on])
        series.append((route.name, number, points))
    low, high = least / 1.15, max(max(times), least) * 1.15
    return _drawn(
        "Accuracy that each route has reached by a time, from image files on. The last mark of a "
        "route is on the scored images; those before it are of the best epoch until then, on the "
        "images that select it, and so a little flattered.",
        ("time from image files, logarithmic", "accuracy, %"),
        series,
        (low, high),
        [(value, seconds(value)) for value in _times(low, high)],
        ["route", "time", "accuracy, %", "of"],
        rows,
        logarithmic=True,
        steps=True,
    )


def reliability_chart(found: Reliability) -> Chart | None:
    """How often predictions are right against how sure they are."""
    parts = [("before calibration", 1, found.before), ("after calibration", 0, found.after)]
    if not found.before or not found.after:
        parts = [("as predicted", 0, found.after or found.before)]
    across = Scale(0, 1)
    series, rows = [], []
    for name, number, bins in parts:
        marks, spans = [], []
        for one in bins:
            x, y = float(one["confidence"]), float(one["accuracy"])
            ends = (float(one["low"]), float(one["high"]))
            count = f"{int(one['count'])} predictions"
            right = f"{percent(y)} % are right ({between(ends)})"
            says = f"{name}: {count}, {percent(x)} % sure on average; {right}"
            faint = int(one["count"]) < FEW
            marks.append(Mark(across(x), 100 - across(y), says, faint))
            spans.append((across(x), 100 - across(ends[1]), 100 - across(ends[0]), faint))
            rows.append([name, str(int(one["count"])), percent(x), percent(y), between(ends)])
        series.append(Series(name, number, marks, "", "", spans))
    if not rows:
        return None
    even = [(100.0 * step / 5, f"{20 * step}") for step in range(6)]
    return Chart(
        "How often predictions are right against how sure they are; on the diagonal, "
        "confidence is worth what it says.",
        "confidence, %",
        "right, %",
        even,
        [(100 - place, text) for place, text in even],
        series,
        True,
        ["", "predictions", "confidence, %", "right, %", "95 % interval"],
        rows,
    )


def training_charts(route: RouteResult) -> list[Chart]:
    """Loss and accuracy by epoch, where there are epochs."""
    found = []
    for what in ("loss", "accuracy"):
        parts = []
        names = {f"train_{what}": "train", f"val_{what}": "validation"}
        for number, (key, name) in enumerate(names.items()):
            rows = [row for row in route.curves if key in row and "epoch" in row]
            digits: Callable[[float], str] = (
                percent if what == "accuracy" else lambda value: f"{value:.4f}"
            )
            points: list[Point] = []
            for row in rows:
                says = f"epoch {row['epoch']:g}, {name}: {digits(row[key])}"
                points.append((row["epoch"], row[key], None, says))
            if len(points) > 1:
                parts.append((name, number, points))
        if not parts:
            continue
        epochs = [point[0] for _, _, points in parts for point in points]
        low, high = min(epochs), max(epochs)
        unit = ", %" if what == "accuracy" else ""
        found.append(
            _drawn(
                f"{what.capitalize()} by epoch.",
                ("epoch", f"{what}{unit}"),
                parts,
                (low, high),
                [(value, f"{value:g}") for value in ticks(low, high) if value == int(value)],
                ["rows", "epoch", what],
                [[name, f"{p[0]:g}", p[3].rsplit(": ", 1)[1]] for name, _, ps in parts for p in ps],
                share=what == "accuracy",
            )
        )
    return found


def _times(low: float, high: float) -> list[float]:
    """Times to mark, at most seven."""
    found = [value for value in TIMES if low <= value <= high]
    if len(found) < 3:
        found = [value for value in sorted((*TIMES, *BETWEEN)) if low <= value <= high]
    return found[:: -(-len(found) // 7) or 1] or [low]


def _drawn(
    about: str,
    titles: tuple[str, str],
    series: Sequence[tuple[str, int, list[Point]]],
    reach: tuple[float, float],
    x_ticks: Sequence[tuple[float, str]],
    columns: list[str],
    rows: list[list[str]],
    logarithmic: bool = False,
    steps: bool = False,
    share: bool = True,
) -> Chart:
    values = [value for *_, points in series for p in points for value in (p[1], *(p[2] or ()))]
    low, high = min(values), max(values)
    room = 0.06 * ((high - low) or 0.1)
    low, high = low - room, high + room
    if share:
        low, high = max(0.0, low), min(1.0, high)
    across, up = Scale(*reach, logarithmic), Scale(low, high)
    drawn = []
    for name, number, points in series:
        places = [(across(x), round(100 - up(y), 2)) for x, y, _, _ in points]
        ends = [
            (across(x), round(100 - up(span[1]), 2), round(100 - up(span[0]), 2), False)
            for x, _, span, _ in points
            if span
        ]
        band = [(x, top) for x, top, _, _ in ends]
        band += [(x, bottom) for x, _, bottom, _ in reversed(ends)]
        marks = [Mark(*place, p[3]) for place, p in zip(places, points, strict=True)]
        line = places
        if steps:
            line = [
                corner
                for place, after in zip(places, [*places[1:], places[-1]], strict=True)
                for corner in (place, (after[0], place[1]))
            ]
        drawn.append(
            Series(
                name,
                number,
                marks if len(marks) <= MOST_MARKS else [],
                polyline(line) if len(line) > 1 else "",
                polyline(band) if len(ends) > 1 else "",
                ends,
            )
        )
    scale = 100 if share else 1
    named = [(round(100 - up(y), 2), f"{scale * y:.6g}") for y in ticks(low, high, 5)]
    places_named = [(across(x), text) for x, text in x_ticks]
    return Chart(about, *titles, places_named, named, drawn, False, columns, rows)


def _numbered(results: Results) -> list[tuple[int, RouteResult]]:
    """Finished routes with their place: a route keeps its colour in every chart."""
    return list(enumerate(results.finished))


def legend(chart: Chart) -> list[dict[str, Any]]:
    """Names with their marks and colours."""
    return [
        {"name": one.name, "number": one.number, "colour": colour_of(one.number)}
        for one in chart.series
    ]
