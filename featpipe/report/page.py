"""One HTML file that holds all of it: no network, no second file.

Charts are SVG laid out in percent by `featpipe.report.charts`; what moves is a short script of
the page's own. A bundled charting library would be larger than all the pictures of most pages,
draws on a canvas that a reader of screens cannot enter or needs a policy that allows ``eval``,
and none of them is legible at the width of a telephone without being drawn again.

Everything that was named by somebody is escaped by Jinja2, in markup as in the script's data, and
the policy of the page lets nothing run but its own script, by digest.
"""

import base64
import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.durable import put
from featpipe.errors import ResultsError
from featpipe.report import words
from featpipe.report.board import Gaps, conditions, drawn_gaps, facts, gaps, leaderboard
from featpipe.report.charts import MARKS, colour_of, outline
from featpipe.report.closer import Closer, facts_of, look_closer, wanted_rows
from featpipe.report.lines import budget_chart, cost_chart, legend
from featpipe.report.pictures import embed
from featpipe.report.scatter import HEIGHT, WIDTH, Scatter, make_scatter
from featpipe.results import Pair, Results, Suspect

if TYPE_CHECKING:
    from jinja2 import Environment

    from featpipe.changes import Changes

log = logging.getLogger(__name__)

MOST_BYTES = 15_000_000
PICTURE_BYTES = 10_000_000  # at first; less if the page becomes too large
MOST_LEAKS, MOST_SUSPECTS, MOST_OF_GROUP, MOST_CLASS_ROWS = 60, 48, 8, 1000
TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    results: Results | dict[str, Any],
    folder: str | Path,
    out: str | Path | None = None,
    changes: "Changes | None" = None,
) -> Path:
    """Write results as one HTML file that needs no other.

    Parameters
    ----------
    results : Results or dict
        Or what `Results.to_dict` gives.
    folder : str or Path
        Where the thumbnails' folder is; pictures that are not there are left out.
    out : str or Path
        The file to write; ``report.html`` in `folder`, if left out.
    changes : Changes
        Since an earlier comparison, to be told first.

    Returns
    -------
    Path
        The file: at most 15 MB, whatever the number of images.

    Raises
    ------
    ResultsError
        If `results` is something else, or its parts do not fit each other.
    """
    if not isinstance(results, Results):
        results = Results.from_dict(results)
    folder = Path(folder)
    path = Path(out) if out is not None else folder / "report.html"
    check_fit(results)
    room = PICTURE_BYTES
    while True:
        html = _render(results, folder, changes, room).encode("utf-8", "backslashreplace")
        if len(html) <= MOST_BYTES or room == 0:
            break
        room = max(0, min(room // 2, room - 2 * (len(html) - MOST_BYTES)))
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, html)
    return path


def check_fit(results: Results) -> None:
    """Refuse results whose rows and classes are not those of their own items.

    Raises
    ------
    ResultsError
        What does not fit.
    """
    items, classes = results.items, len(results.classes)
    count = len(items.ids)
    checks: list[tuple[str, list[int], int, int]] = [
        ("labels", items.labels, -1, classes),
        ("suspects", [one.row for one in results.suspects], 0, count),
        ("suspects", [c for s in results.suspects for c in (s.given, s.suggested)], -1, classes),
    ]
    if results.leaks:
        near = [row for pair in results.leaks.near for row in pair.rows]
        exact = [row for group in results.leaks.exact for row in group]
        checks.append(("leaks", near + exact, 0, count))
    lengths = [("labels", len(items.labels)), ("parts", len(items.parts))]
    if results.map:
        lengths.append(("points of the map", len(results.map.points)))
    wrong = [name for name, length in lengths if length != count]
    for route in results.routes:
        said = route.predictions
        if said:
            checks.append((f"rows of {route.name}", said.rows, 0, count))
            checks.append((f"predictions of {route.name}", said.predicted, 0, classes))
            same = len(said.rows) == len(said.predicted) == len(said.confidence)
            if not same or not all(0 <= sure <= 1.001 for sure in said.confidence):
                wrong.append(f"predictions of {route.name}")
        if route.confusion and {len(route.confusion), *map(len, route.confusion)} != {classes}:
            wrong.append(f"confusion of {route.name}")
    wrong += [
        name
        for name, some, low, high in checks
        if some and not low <= min(some) <= max(some) < high
    ]
    if wrong:
        raise ResultsError(
            f"Parts of the results do not fit each other: {', '.join(wrong)}. The file was changed "
            "or cut off; compare again to write it anew."
        )


def _render(results: Results, folder: Path, changes: "Changes | None", room: int) -> str:
    columns, lines = leaderboard(results)
    closers, scatter = look_closer(results), make_scatter(results)
    large, small = _wanted(results, closers, scatter)
    pictures, left_out = embed(_thumbnails(results, folder), large, small, room)
    return (
        _environment()
        .get_template("page.html")
        .render(
            results=results,
            title=results.title,
            style=_source("page.css"),
            script=_source("page.js"),
            style_digest=_digest("page.css"),
            script_digest=_digest("page.js"),
            marks=[outline(number, 0, 0, 5) for number in range(MARKS)],
            facts=facts(results),
            columns=columns,
            lines=lines,
            failed=[route for route in results.routes if not route.finished],
            gaps=gaps(results),
            charts=[
                (name, title, chart)
                for name, title, chart in (
                    ("budget", "With few labels", budget_chart(results)),
                    ("cost", "For the time it takes", cost_chart(results)),
                )
                if chart
            ],
            closers=closers,
            scatter=scatter,
            frame=(WIDTH, HEIGHT),
            leaks=results.leaks,
            near=_near(results),
            exact=_exact(results),
            suspects=_suspects(results),
            conditions=conditions(results),
            changes=changes,
            changes_drawn=_drawn_changes(results, changes),
            pictures=pictures,
            left_out=left_out,
            data=_data(results, closers, scatter, pictures),
        )
    )


def rows_shown(results: Results) -> list[int]:
    """Rows whose pictures a page of the results shows, the most telling first."""
    check_fit(results)
    large, small = _wanted(results, look_closer(results), make_scatter(results))
    return list(dict.fromkeys(large + small))


def _wanted(
    results: Results, closers: list[Closer], scatter: Scatter | None
) -> tuple[list[int], list[int]]:
    """Rows whose pictures are wanted large, and those that may be small."""
    large = [row for pair in _near(results) for row in pair.rows]
    large += [row for group in _exact(results) for row in group[:MOST_OF_GROUP]]
    large += [one.row for one in _suspects(results)]
    wrong, right = wanted_rows(closers)
    return large + wrong, right + ([row for row, _, _ in scatter.points] if scatter else [])


def _near(results: Results) -> list[Pair]:
    found = results.leaks.near if results.leaks else []
    return sorted(found, key=lambda pair: (not pair.across, -pair.similarity))[:MOST_LEAKS]


def _exact(results: Results) -> list[list[int]]:
    return results.leaks.exact[:MOST_LEAKS] if results.leaks else []


def _suspects(results: Results) -> list[Suspect]:
    return sorted(results.suspects, key=lambda one: -one.score)[:MOST_SUSPECTS]


def _drawn_changes(results: Results, changes: "Changes | None") -> Gaps | None:
    if changes is None or not changes.routes:
        return None
    places = {route.name: number for number, route in enumerate(results.finished)}
    found = [
        (one.name, places.get(one.name, 0), one.difference, one.interval_95, one.sure)
        for one in changes.routes
    ]
    return drawn_gaps(found, says=("fell", "rose"))


def _data(
    results: Results, closers: list[Closer], scatter: Scatter | None, pictures: dict[int, str]
) -> dict[str, Any]:
    """What the script reads."""
    rows = set(pictures)
    rows |= {row for closer in closers for some in closer.cells.values() for row, _ in some}
    rows |= {row for row, _, _ in scatter.points} if scatter else set()
    best = closers[0] if closers else None
    said: dict[int, int] = {}
    if best and best.route.predictions:
        said = dict(zip(best.route.predictions.rows, best.route.predictions.predicted, strict=True))
    ids, labels = results.items.ids, results.items.labels
    return {
        "classes": [words.printable(name) for name in results.classes],
        "best": words.printable(best.route.name) if best else "",
        "items": {
            row: [words.printable(ids[row]), labels[row], said.get(row, -1)] for row in sorted(rows)
        },
        "pictures": pictures,
        "cells": {
            closer.number: {
                name: [[row, round(sure, 4)] for row, sure in some]
                for name, some in closer.cells.items()
            }
            for closer in closers
        },
        "points": scatter.points if scatter else [],
    }


def _thumbnails(results: Results, folder: Path) -> Path:
    """The thumbnails' folder; only one inside of `folder` is looked into."""
    named = (results.thumbnails or {}).get("folder")
    if not isinstance(named, str) or Path(named).is_absolute() or ".." in Path(named).parts:
        return folder / "thumbnails"
    return folder / named


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=words.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    for name in ("percent", "points", "between", "seconds", "large", "plain", "soft"):
        made.filters[name] = getattr(words, name)
    made.filters["colour"] = colour_of
    made.globals |= {"legend": legend, "facts_of": facts_of, "class_rows": MOST_CLASS_ROWS}
    return made


@cache
def _source(name: str) -> str:
    from markupsafe import Markup

    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _digest(name: str) -> str:
    """As a content security policy names what may run."""
    return base64.b64encode(hashlib.sha256(_source(name).encode()).digest()).decode()
