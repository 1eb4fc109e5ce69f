"""What a comparison says, in sentences for people who do not read intervals."""

from collections.abc import Sequence

from featpipe.results import Verdict
from featpipe.route_results import Difference, RouteResult

MUCH = 1.5  # times as long, from which on a cost is worth a sentence
MOST_NAMED = 4


def verdict(routes: Sequence[RouteResult], part: str) -> Verdict:
    """The best route, and what can be said of it and the others.

    Parameters
    ----------
    routes : sequence of RouteResult
        Finished ones, best first, with their differences to it; then the failed.
    part : str
        ``folds``, ``test`` or ``val``: what they were ranked by.
    """
    finished = [route for route in routes if route.finished]
    said: list[str] = []
    if not finished:
        return Verdict(None, ["No route could be run.", *_failures(routes)])
    best, *others = finished
    if not others:
        said.append(
            f"{best.name} has an accuracy of {accuracy(best)}; there is nothing to compare."
        )
    opponent = _opponent(best, others)
    if opponent is not None:
        said.append(sentence(best, opponent))
    tied = [route for route in others if route.difference and not route.difference.sure]
    if tied and (len(tied) > 1 or tied[0] is not opponent):
        cheapest = min([best, *tied], key=cold)
        listed = _listed([route.name for route in tied])
        more = ""
        if cheapest is not best and cold(best) > MUCH * cold(cheapest):
            more = f"; of these {cheapest.name} is the cheapest, {_faster(best, cheapest)}"
        said.append(f"The data cannot tell {best.name} from {listed}{more}.")
    beaten = [route for route in others if route.difference and route.difference.sure]
    beaten = [route for route in beaten if route is not opponent]
    if beaten:
        said.append(f"{best.name} is better than {_listed([one.name for one in beaten])}.")
    said += _remarks(best, finished, part)
    return Verdict(best.name, [*said, *_failures(routes)])


def sentence(best: RouteResult, other: RouteResult) -> str:
    """Who beats whom by how much at what cost, or that the data cannot tell."""
    found = other.difference
    assert found is not None
    by = f"{_points(abs(found.value))} ({_interval(found)})"
    if found.sure:
        said = f"{best.name} beats {other.name} by {by}"
        if cold(other) > MUCH * cold(best):
            return f"{said} and {_trains(best, other)}."
        if cold(best) > MUCH * cold(other):
            return f"{said}, but {other.name} {_trains(other, best)}."
        return f"{said}."
    said = (
        f"The data cannot tell whether {best.name} or {other.name} is better: they differ by {by}"
    )
    cheap, dear = sorted((best, other), key=cold)
    if cold(dear) > MUCH * cold(cheap):
        return f"{said}. {cheap.name} {_trains(cheap, dear)}."
    return f"{said}."


def accuracy(route: RouteResult) -> str:
    """A route's accuracy with its interval."""
    assert route.accuracy is not None
    text = f"{100 * route.accuracy.value:.1f} %"
    if route.accuracy.interval_95 is None:
        return text
    low, high = route.accuracy.interval_95
    return f"{text} (95 % interval {100 * low:.1f} to {100 * high:.1f})"


def cold(route: RouteResult) -> float:
    """Seconds from image files to scored classifiers."""
    assert route.seconds is not None
    return max(route.seconds.cold, 1e-3)


def _opponent(best: RouteResult, others: Sequence[RouteResult]) -> RouteResult | None:
    """The best of the other kind: transfer against a network from scratch; else the runner-up."""
    from_scratch = best.kind == "scratch"
    other_kind = [one for one in others if (one.kind == "scratch") != from_scratch]
    if from_scratch:
        other_kind = [one for one in other_kind if one.kind != "pixels"] or other_kind
    return next(iter(other_kind or others), None)


def _remarks(best: RouteResult, finished: Sequence[RouteResult], part: str) -> list[str]:
    said = []
    if part == "folds" and best.test:
        low, high = best.test["accuracy_interval_95"]
        said.append(
            f"On {best.test['n']} test images, which selected nothing, {best.name} has "
            f"{100 * best.test['accuracy']:.1f} % right (95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f})."
        )
    if part == "val":
        said.append(
            "The scored images also selected epochs and candidates, which flatters every route: "
            "with --folds or --test they would not."
        )
    counts = {route.candidates for route in finished}
    if len(counts) > 1:
        most = max(finished, key=lambda route: route.candidates)
        least = min(finished, key=lambda route: route.candidates)
        said.append(
            f"Not all had the same choice: {most.name} chose among {most.candidates} candidates, "
            f"{least.name} among {least.candidates}."
        )
    blind = [route.name for route in finished if route.random_weights]
    if blind:
        said.append(
            f"Nothing in the backbone of {_listed(blind)} was learnt from any image: its weights "
            "are random, and its accuracy says nothing about transfer learning."
        )
    return said


def _failures(routes: Sequence[RouteResult]) -> list[str]:
    return [
        f"{route.name} could not be run: {_stopped(route.reason)}"
        for route in routes
        if not route.finished
    ]


def _stopped(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else "no reason is known"
    return first if first.endswith(".") else f"{first}."


def _trains(cheap: RouteResult, dear: RouteResult) -> str:
    return f"trains {_times(cold(dear) / cold(cheap))} times faster"


def _faster(dear: RouteResult, cheap: RouteResult) -> str:
    return f"{_times(cold(dear) / cold(cheap))} times faster"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _interval(found: Difference) -> str:
    """Of the best one's lead."""
    if found.interval_95 is None:
        return "no interval"
    low, high = found.interval_95
    return f"95 % interval {-100 * high:.1f} to {-100 * low:.1f}".replace("-0.0", "0.0")


def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMED:
        names = [*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} others"]
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
