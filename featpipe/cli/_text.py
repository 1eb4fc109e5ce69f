"""Documents and texts that more than one command prints."""

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.cli._output import percent, print_table, say, seconds

if TYPE_CHECKING:
    from featpipe.compare_plan import ComparisonPlan
    from featpipe.results import Results
    from featpipe.route_results import RouteResult


def default_out(images: str, backbone: str) -> Path:
    """A file name for the features of `images` by `backbone`."""
    name = Path(images).resolve().stem if Path(images).exists() else images
    model = backbone.partition("@")[0]
    # Short enough for names made of it, whatever its letters weigh in bytes.
    return Path(re.sub(r"[^\w.-]+", "-", f"{name[:50]}-{model[-60:]}") + ".h5")


def describe_cache(cache: FeatureCache) -> dict[str, Any]:
    """What a cache holds, as plain JSON values."""
    bad = np.flatnonzero(~cache.ok)
    splits = cache.table.splits
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in cache.table.ids)
    return {
        "path": str(cache.path),
        "rows": len(cache),
        "size_bytes": cache.path.stat().st_size,
        "classes": cache.table.class_counts(),
        "splits": dict(Counter(splits[splits != ""].tolist())) if splits is not None else {},
        "groups": len(set(cache.table.groups)) if cache.table.groups is not None else 0,
        "suffixes": dict(suffixes.most_common()),
        "layers": {name: list(shape) for name, shape in cache.layers.items()},
        "status": cache.status_counts(),
        "without_features": [
            {"id": cache.table.ids[row], "reason": cache.reasons[row]} for row in bad
        ],
        "spec": cache.spec.to_dict(),
        "conditions": cache.conditions,
    }


def print_comparison(results: "Results") -> None:
    """What a comparison says, and the table of its routes, on stdout."""
    for sentence in results.verdict.sentences:
        say(sentence)
    say()
    tested = any(route.test for route in results.finished) and results.design["folds"]
    rows = []
    for route in results.finished:
        assert route.accuracy is not None
        assert route.seconds is not None
        low, high = route.accuracy.interval_95 or (None, None)
        row = [route.name, percent(route.accuracy.value), f"{percent(low)} to {percent(high)}"]
        if tested:
            row.append(percent(route.test["accuracy"] if route.test else None))
        rows.append([*row, _behind(route), *_costs(route)])
    columns = ["route", "accuracy %", "95 % interval", *(["test %"] if tested else [])]
    columns += ["points behind", "s cold", "s warm", "peak MB", "images/s", "parameters trained"]
    print_table(columns, rows)
    design = results.design
    counts = ", ".join(f"{count} {part}" for part, count in design["rows"].items())
    scored = {"folds": "every fold's rows", "test": "the test rows", "val": "the validation rows"}
    say(
        f"{results.images.location}: {counts}; {design['origin']}. Accuracy is of "
        f"{scored[design['ranked_by']]}; each route chose among at most "
        f"{design['select_budget']} candidates."
    )
    say(
        "Cold: one classifier from image files, choosing among its candidates; warm: from "
        "features or decoded pixels. Peak: of the whole process while the route ran."
    )


def _behind(route: "RouteResult") -> str:
    """By how much the best is better, and whether that is sure."""
    if route.difference is None:
        return "-"
    low, high = route.difference.interval_95 or (0.0, 0.0)
    sure = "" if route.difference.sure else ", cannot tell"
    value = -100 * route.difference.value + 0.0
    return f"{value:.1f} ({-100 * high:.1f} to {-100 * low:.1f}{sure})"


def _costs(route: "RouteResult") -> list[str]:
    assert route.seconds is not None
    peak, rate = route.peak_bytes, route.images_per_second
    return [
        seconds(route.seconds.cold),
        seconds(route.seconds.warm),
        "-" if peak is None else f"{peak / 1e6:,.0f}",
        "-" if rate is None else f"{rate:,.0f}",
        "-" if route.parameters is None else f"{route.parameters:,}",
    ]


def print_plan(plan: "ComparisonPlan") -> None:
    """What a comparison would run, on stdout."""
    rows = []
    for one in plan.features:
        what = ", ".join(one.layers) or "penultimate features"
        told = one.note or f"{one.images} images to compute"
        rows.append([f"{one.backbone}: {what}", told, _about(one.seconds), _megabytes(one.bytes)])
    for route in plan.routes:
        told = route.note or f"{route.trainings} trainings"
        if route.kept:
            told += f", {route.kept} of {plan.rounds} rounds kept"
        if route.candidates > 1:
            told += f", {route.candidates} candidates"
        rows.append([route.name, told, _about(route.seconds), "-"])
    print_table(["what", "to do", "about", "MB kept"], rows, left=2)
    say(
        f"About {_about(plan.seconds)} in all, {plan.disk_bytes / 1e6:,.1f} MB to keep, "
        f"{plan.temporary_bytes / 1e6:,.1f} MB of temporary files. {plan.rounds} rounds for each "
        f"route; each may choose among {plan.select_budget} candidates. Networks may stop earlier."
    )
    say(f"Measured on a few images and batches, in {seconds(plan.calibration_seconds)} s.")


def _about(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"


def _megabytes(count: int) -> str:
    return "-" if not count else f"{count / 1e6:,.1f}"
