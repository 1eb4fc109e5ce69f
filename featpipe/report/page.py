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
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.durable import put
from featpipe.errors import ResultsError
from featpipe.report import words
from featpipe.report.board import Gaps, conditions, drawn_gaps, facts, gaps, leaderboard
from featpipe.report.charts import MARKS, colour_of, outline
from featpipe.report.closer import Closer, facts_of, look_closer
from featpipe.report.lines import budget_chart, cost_chart, legend
from featpipe.report.pictures import embed
from featpipe.report.scatter import HEIGHT, WIDTH, Scatter, make_scatter
from featpipe.report.shown import check_fit, exact_groups, near_pairs, suspected, wanted
from featpipe.results import Results

if TYPE_CHECKING:
    from jinja2 import Environment

    from featpipe.changes import Changes

MOST_BYTES = 15_000_000
PICTURE_BYTES = 10_000_000  # at first; less if the page becomes too large
MOST_CLASS_ROWS = 1000
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
        html = _rendered(results, folder, changes, room).encode("utf-8", "backslashreplace")
        if len(html) <= MOST_BYTES or room == 0:
            break
        room = max(0, min(room // 2, room - 2 * (len(html) - MOST_BYTES)))
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, html)
    return path


def _rendered(results: Results, folder: Path, changes: "Changes | None", room: int) -> str:
    from jinja2 import UndefinedError

    try:
        return _render(results, folder, changes, room)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    except UndefinedError as error:
        reason = str(error)
    raise ResultsError(
        f"Something in the results is not as featpipe writes it ({reason}). The file was changed; "
        "compare again to write it anew."
    )


def _render(results: Results, folder: Path, changes: "Changes | None", room: int) -> str:
    columns, lines = leaderboard(results)
    closers, scatter = look_closer(results), make_scatter(results)
    large, small = wanted(results, closers, scatter)
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
            near=near_pairs(results),
            exact=exact_groups(results),
            suspects=suspected(results),
            conditions=conditions(results),
            changes=changes,
            changes_drawn=_drawn_changes(results, changes),
            pictures=pictures,
            left_out=left_out,
            data=_data(results, closers, scatter, pictures),
        )
    )


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
