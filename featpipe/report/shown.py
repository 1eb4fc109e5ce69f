"""What of results a page shows, and whether they are whole."""

from featpipe.errors import ResultsError
from featpipe.report.closer import Closer, look_closer, wanted_rows
from featpipe.report.scatter import Scatter, make_scatter
from featpipe.results import Pair, Results, Suspect

MOST_LEAKS, MOST_SUSPECTS, MOST_OF_GROUP = 60, 48, 8


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
    try:
        results.to_dict()
    except ValueError:
        wrong.append("a figure that is not a number")
    if wrong:
        raise ResultsError(
            f"Parts of the results do not fit each other: {', '.join(wrong)}. The file was changed "
            "or cut off; compare again to write it anew."
        )


def rows_shown(results: Results) -> list[int]:
    """Rows whose pictures a page of the results shows, the most telling first."""
    check_fit(results)
    large, small = wanted(results, look_closer(results), make_scatter(results))
    return list(dict.fromkeys(large + small))


def wanted(
    results: Results, closers: list[Closer], scatter: Scatter | None
) -> tuple[list[int], list[int]]:
    """Rows whose pictures are wanted large, and those that may be small."""
    large = [row for pair in near_pairs(results) for row in pair.rows]
    large += [row for group in exact_groups(results) for row in group[:MOST_OF_GROUP]]
    large += [one.row for one in suspected(results)]
    wrong, right = wanted_rows(closers)
    return large + wrong, right + ([row for row, _, _ in scatter.points] if scatter else [])


def near_pairs(results: Results) -> list[Pair]:
    """Pairs that look alike, those across splits or classes first."""
    found = results.leaks.near if results.leaks else []
    return sorted(found, key=lambda pair: (not pair.across, -pair.similarity))[:MOST_LEAKS]


def exact_groups(results: Results) -> list[list[int]]:
    """Rows of the same bytes."""
    return results.leaks.exact[:MOST_LEAKS] if results.leaks else []


def suspected(results: Results) -> list[Suspect]:
    """Labels to check, the most suspicious first."""
    return sorted(results.suspects, key=lambda one: -one.score)[:MOST_SUSPECTS]
