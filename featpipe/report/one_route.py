"""What one training came to, as results of a comparison of one route."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from featpipe.result import Result
from featpipe.results import Images, Items, Results, Suspect, Verdict
from featpipe.route_results import (
    Accuracy,
    ClassRow,
    FoldFigures,
    Predictions,
    Reliability,
    RouteResult,
    Seconds,
    SizePoint,
)
from featpipe.suspects import list_suspects
from featpipe.table import ImageTable

LEVELS = {"test": "test", "folds": "cross-validated", "val": "validation", "train": "training"}


def results_of(
    result: Result,
    classes: Sequence[str],
    table: ImageTable,
    title: str,
    location: str = "",
    kind: str | None = None,
    usable: np.ndarray | None = None,
    part: str | None = None,
) -> Results:
    """A training's result as a comparison's, of one route.

    Parameters
    ----------
    result : Result
    classes : sequence of str
        The classifier's.
    table : ImageTable
        That the rows of ``result.split`` are of.
    title : str
    location : str
        Where the images are.
    kind : str
        As in `featpipe.route_results.RouteResult`; left out, what the conditions say.
    usable : bool array, shape (n,)
        Rows that have features; all if left out.
    part : str
        Rows whose scores are shown. Left out, the last that there is: test rows, else what folds
        held out, else validation rows.

    Returns
    -------
    Results
        Without a map and without leaks; suspected labels where there are folds. Of images with
        several labels each, no predictions.
    """
    part = part or list(result.scores)[-1]
    scores = result.scores[part].to_dict()
    single = table.classes == tuple(classes) and table.labels is not None
    labels = table.labels if single and table.labels is not None else np.full(len(table), -1)
    conditions = result.conditions
    extract = float(conditions.get("extraction_seconds") or conditions.get("decode_seconds") or 0.0)
    spec = conditions.get("spec") or {}
    name = _name(conditions)
    seconds = Seconds(extract + result.seconds, result.seconds, extract, result.seconds)
    rows = _rows(result, part)
    predictions = _predictions(result, part, rows, labels) if single else None
    calibration = result.calibration if result.calibration.get("shown") == part else {}
    figures = ("accuracy", "balanced_accuracy", "log_loss")
    route = RouteResult(
        name=name,
        kind=kind or _kind(conditions),
        backbone=spec.get("backbone"),
        layer=conditions.get("layer"),
        head=conditions.get("head"),
        options=conditions.get("options", {}),
        random_weights=bool(spec.get("random_weights")),
        accuracy=Accuracy(
            scores["accuracy"], _pair(scores["accuracy_interval_95"]), scores["n"], part
        ),
        test=scores if part == "test" else None,
        folds=FoldFigures(**{key: [scores[key]] for key in figures if scores.get(key) is not None}),
        seconds=seconds,
        parameters=result.parameters,
        candidates=len(result.sweep.candidates) if result.sweep else 1,
        budget=_budget(result),
        per_class=[_class_row(row) for row in scores["per_class"]],
        confusion=scores.get("confusion") if single else None,
        predictions=predictions,
        reliability=(
            Reliability(
                calibration["before"],
                calibration["after"],
                scores.get("expected_calibration_error"),
            )
            if calibration
            else None
        ),
        curves=result.curves,
        conditions={key: value for key, value in conditions.items() if key != "machine"},
    )
    suspects = []
    if single and "folds" in result.proba and result.split is not None:
        held = result.split.train
        found = list_suspects(held, labels[held], result.proba["folds"])
        suspects = [Suspect(one.row, one.given, one.suggested, one.score) for one in found]
    counts = table.class_counts() if single else dict.fromkeys(classes, 0)
    if not single:
        counts |= {row["class"]: row["images"] for row in scores["per_class"]}
    unusable = 0 if usable is None else int((table.labelled & ~usable).sum())
    return Results(
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        images=Images(location, len(table), unusable, counts),
        design=dict(conditions.get("split", {})),
        items=Items(
            [str(one) for one in table.ids], labels.tolist(), _groups(table), _parts(result, table)
        ),
        routes=[route],
        verdict=Verdict(name, _sentences(route, list(classes))),
        thumbnails={"folder": "thumbnails"},
        suspects=suspects,
        machine=conditions.get("machine", {}),
    )


def _name(conditions: dict[str, Any]) -> str:
    if "head" not in conditions:
        return str(conditions.get("route", "network"))
    spec = conditions.get("spec") or {}
    backbone = str(spec.get("backbone", "features")).removeprefix("torchvision:")
    return f"{backbone} + {conditions['head']}"


def _kind(conditions: dict[str, Any]) -> str:
    if "head" not in conditions:
        return "scratch"
    if str((conditions.get("spec") or {}).get("backbone", "")).startswith("pixels"):
        return "pixels"
    return "tail" if conditions["head"] == "tail" else "head"


def _rows(result: Result, part: str) -> np.ndarray:
    assert result.split is not None
    return result.split.train if part == "folds" else result.split.parts()[part]


def _predictions(
    result: Result, part: str, rows: np.ndarray, labels: np.ndarray
) -> Predictions | None:
    proba = result.proba.get(part)
    if proba is None:
        return None
    places, predicted = np.arange(len(rows)), proba.argmax(axis=1)
    sure, true = proba[places, predicted], proba[places, labels[rows]]
    return Predictions(
        rows.tolist(),
        predicted.tolist(),
        [min(1.0, round(float(one), 6)) for one in sure],
        [min(1.0, round(float(one), 6)) for one in true],
    )


def _class_row(row: dict[str, Any]) -> ClassRow:
    return ClassRow(
        row["class"],
        int(row["images"]),
        float(row["precision"] or 0.0),
        float(row["recall"] or 0.0),
        float(row["f1"] or 0.0),
        _pair(row["precision_interval_95"]),
        _pair(row["recall_interval_95"]),
    )


def _pair(ends: Sequence[float] | None) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _budget(result: Result) -> list[SizePoint]:
    if result.budget is None:
        return []
    found = []
    for point in result.budget.points:
        mean, low, high = point.accuracy
        if mean is not None:
            span = None if low is None or high is None else (low, high)
            found.append(SizePoint(point.budget, mean, span))
    return found


def _groups(table: ImageTable) -> list[str] | None:
    return None if table.groups is None else [str(one) for one in table.groups]


def _parts(result: Result, table: ImageTable) -> list[str]:
    parts = np.full(len(table), "", dtype=object)
    if result.split is not None:
        for name, rows in result.split.parts().items():
            parts[rows] = name
    return [str(one) for one in parts]


def _sentences(route: RouteResult, classes: list[str]) -> list[str]:
    """The accuracy, what it is of, and what is confused most."""
    accuracy, spent = route.accuracy, route.seconds
    assert accuracy is not None
    assert spent is not None
    span = ""
    if accuracy.interval_95:
        low, high = accuracy.interval_95
        span = f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    images = f"{accuracy.n:,} {LEVELS[accuracy.part]} images"
    found = [f"{route.name} is right on {100 * accuracy.value:.1f} % of {images}{span}."]
    if accuracy.part == "val":
        found.append("They also chose what was trained: on images it has never met, expect less.")
    if accuracy.part == "train":
        found.append("It was trained on these: how good it is on others is not known.")
    pairs = [
        (count, true, predicted)
        for true, line in enumerate(route.confusion or ())
        for predicted, count in enumerate(line)
        if count and true != predicted
    ]
    if pairs:
        count, true, predicted = max(pairs, key=lambda one: (one[0], -one[1], -one[2]))
        all_of = sum((route.confusion or [])[true])
        found.append(
            f"Most often it takes {classes[true]} for {classes[predicted]}: {count} of {all_of}."
        )
    return found
