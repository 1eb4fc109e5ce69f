"""What a route's trials come to: its figures, its predictions, its costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability,
    wilson,
)
from featpipe.kept import Trial
from featpipe.metrics import Scores, score
from featpipe.ranking import accuracy_interval, worth
from featpipe.rounds import Round, Rounds
from featpipe.route import Route
from featpipe.route_results import (
    Accuracy,
    ClassRow,
    CostPoint,
    FoldFigures,
    Predictions,
    Reliability,
    RouteResult,
    Seconds,
    SizePoint,
)
from featpipe.sweep import validation_figures
from featpipe.targets import Targets


@dataclass(frozen=True, eq=False)
class Standing:
    """A route that was run.

    Attributes
    ----------
    route : Route
    trials : dict of str to Trial
        By the rounds' names.
    extract_seconds : float
        Of the features it shares with others, or of decoding.
    images_per_second : float
        At which images become features or pixels.
    spec : dict or None
        Of the features.
    layer : str or None
        As the features have it.
    random_weights : bool
    peak_bytes : int or None
        While features were computed.
    budget : list of SizePoint
    budget_note : str
        Why there is no label budget, or part of it is missing.
    decides : str
        Digest of all that the figures depend on.
    """

    route: Route
    trials: Mapping[str, Trial]
    extract_seconds: float
    images_per_second: float | None
    spec: dict[str, Any] | None
    layer: str | None
    random_weights: bool
    peak_bytes: int | None
    budget: list[SizePoint]
    budget_note: str
    decides: str


@dataclass(frozen=True, eq=False)
class Held:
    """What fits that had not seen them say of the scored images, each once.

    Attributes
    ----------
    rows : int array, ascending
    raw, proba : float arrays, shape (n, classes)
        As the classifiers give them, and calibrated by the rows that selected.
    right : float array, shape (n,)
        How often each was right, over the repetitions.
    """

    rows: np.ndarray
    raw: np.ndarray
    proba: np.ndarray
    right: np.ndarray


def calibrated(trial: Trial, one: Round, targets: Targets) -> np.ndarray:
    """Probabilities of the scored rows at the temperature that the selecting rows ask for."""
    truth = targets.values[one.select]
    if not len(truth) or (trial.selecting.argmax(axis=1) == truth).all():
        return trial.proba  # nothing says how often there will be a mistake
    return apply_temperature(trial.proba, fit_temperature(trial.selecting, truth))


def held_out(trials: Mapping[str, Trial], rounds: Rounds, targets: Targets) -> Held:
    """What a route says of every ranking row."""
    rows = np.unique(np.concatenate([one.scored for one in rounds.ranking]))
    classes = len(targets.classes)
    raw, proba = np.zeros((len(rows), classes)), np.zeros((len(rows), classes))
    right, times = np.zeros(len(rows)), np.zeros(len(rows))
    for one in rounds.ranking:
        places, trial = np.searchsorted(rows, one.scored), trials[one.name]
        right[places] += trial.proba.argmax(axis=1) == targets.values[one.scored]
        times[places] += 1
        if one.repeat == 0:
            raw[places], proba[places] = trial.proba, calibrated(trial, one, targets)
    return Held(rows, raw, proba, right / times)


def outcome(
    standing: Standing,
    rounds: Rounds,
    targets: Targets,
    held: Held,
    groups: np.ndarray | None = None,
) -> RouteResult:
    """Everything that is known of a route without the others.

    Parameters
    ----------
    standing : Standing
    rounds : Rounds
    targets : Targets
    held : Held
    groups : array, shape (n,), or None
        Of the table's rows; images of one group say less than as many others.
    """
    route, trials = standing.route, standing.trials
    ranking = [trials[one.name] for one in rounds.ranking]
    figures = [
        validation_figures(targets.values[one.scored], calibrated(trial, one, targets))
        for one, trial in zip(rounds.ranking, ranking, strict=True)
    ]
    folds = {name: [found[name] for found in figures] for name in figures[0]}
    value, low, high = accuracy_interval(
        folds["accuracy"],
        rounds.test_share,
        worth(held.right, None if groups is None else groups[held.rows]),
    )
    assert value is not None
    assert low is not None
    assert high is not None
    part = rounds.part
    truth = targets.values[held.rows]
    scores = score(truth, held.proba.argmax(axis=1), targets.classes, held.proba, resamples=200)
    test = None
    if rounds.test is not None:
        trial = trials[rounds.test.name]
        proba = calibrated(trial, rounds.test, targets)
        test = _scores(proba, rounds.test, targets).to_dict()
        right = proba.argmax(axis=1) == targets.values[rounds.test.scored]
        _widen(test, right, groups, rounds.test.scored)
    elif part == "test":
        test = scores.to_dict()
        _widen(test, held.right, groups, held.rows)
    facts = next((one for one in reversed(list(trials.values())) if one.parameters), ranking[0])
    fit = float(np.mean([trial.seconds for trial in ranking]))
    shown = _names(targets, held)
    return RouteResult(
        name=route.name,
        kind=route.kind,
        backbone=route.backbone,
        layer=standing.layer,
        head=route.head,
        options=_agreed(ranking, route),
        random_weights=standing.random_weights,
        accuracy=Accuracy(value, (low, high), len(held.rows), part),
        test=test,
        folds=FoldFigures(**folds) if part == "folds" else FoldFigures(),
        seconds=Seconds(
            standing.extract_seconds + fit, fit, standing.extract_seconds, fit
        ),
        peak_bytes=max(
            [n for n in (standing.peak_bytes, *(t.peak_bytes for t in trials.values())) if n],
            default=None,
        ),
        parameters=facts.parameters,
        images_per_second=_rate(standing.images_per_second, facts.predict_seconds),
        candidates=len(route.candidates),
        budget=standing.budget,
        cost=_cost(standing, ranking, folds["accuracy"]),
        per_class=[_class_row(row) for row in scores.per_class],
        confusion=None if scores.confusion is None else scores.confusion.tolist(),
        predictions=shown,
        reliability=Reliability(
            reliability(held.raw, truth),
            reliability(held.proba, truth),
            expected_calibration_error(held.proba, truth),
        ),
        curves=facts.curves,
        conditions={
            **{k: v for k, v in facts.conditions.items() if k not in ("split", "machine")},
            "spec": standing.spec,
            "seed": route.seed,
            "sweep": {name: list(values) for name, values in route.sweep.items()},
            "chosen": [trial.options for trial in ranking],
            "tried": facts.candidates,
            "epochs": [trial.epochs for trial in ranking],
            "trainings": len(trials) * len(route.candidates),
            "fit_seconds_of_all": sum(trial.seconds for trial in trials.values()),
            "resumed": any(trial.resumed for trial in trials.values()),
            "peak": facts.peak_meaning,
            "peak_device_bytes": max(t.peak_device_bytes for t in trials.values()),
            "budget": standing.budget_note,
            "decides": standing.decides,
        },
    )  # fmt: skip


def _scores(proba: np.ndarray, one: Round, targets: Targets) -> Scores:
    truth = targets.values[one.scored]
    return score(truth, proba.argmax(axis=1), targets.classes, proba)


def _widen(
    scores: dict[str, Any], right: np.ndarray, groups: np.ndarray | None, rows: np.ndarray
) -> None:
    """Give an accuracy the interval that its groups allow."""
    images = worth(right, None if groups is None else groups[rows])
    if images < len(rows):
        interval = list(wilson(round(scores["accuracy"] * images), images))
        scores["accuracy_interval_95"] = scores["intervals_95"]["accuracy"] = interval


def _names(targets: Targets, held: Held) -> Predictions:
    predicted, places = held.proba.argmax(axis=1), np.arange(len(held.rows))
    return Predictions(
        held.rows.tolist(),
        predicted.tolist(),
        [round(float(p), 6) for p in held.proba[places, predicted]],
        [round(float(p), 6) for p in held.proba[places, targets.values[held.rows]]],
    )


def _agreed(ranking: Sequence[Trial], route: Route) -> dict[str, Any]:
    """Options, those that folds chose differently being lists of what they chose."""
    first = ranking[0].options
    agreed = {}
    for name in first:
        every = [trial.options[name] for trial in ranking]
        same = all(value == every[0] for value in every)
        agreed[name] = every[0] if same or name not in route.sweep else every
    return agreed


def _class_row(row: Mapping[str, Any]) -> ClassRow:
    precise, found = row["precision_interval_95"], row["recall_interval_95"]
    return ClassRow(
        name=row["class"],
        n=row["images"],
        precision=float(row["precision"] or 0.0),
        recall=float(row["recall"] or 0.0),
        f1=float(row["f1"] or 0.0),
        precision_interval_95=tuple(precise) if precise else None,
        recall_interval_95=tuple(found) if found else None,
    )


def _rate(before: float | None, predict_seconds: float | None) -> float | None:
    """Images a second, first made features or pixels and then classified."""
    if before is None or predict_seconds is None or not before:
        return None
    return 1 / (1 / before + predict_seconds)


def _cost(
    standing: Standing, ranking: Sequence[Trial], accuracies: Sequence[float]
) -> list[CostPoint]:
    """Accuracy by a time, of one training: where there are epochs, of the best until then.

    Those are on the rows that select, as a mean over the rounds that have them; the last point is
    on the scored rows, and so may lie below the one before.
    """
    total = standing.extract_seconds + float(np.mean([trial.seconds for trial in ranking]))
    points = [CostPoint(total, float(np.mean(accuracies)))]
    curves = [
        np.maximum.accumulate([row["val_accuracy"] for row in trial.curves])
        for trial in standing.trials.values()
        if trial.curves and all("val_accuracy" in row for row in trial.curves)
    ]
    if not curves:
        return points
    epochs = max(map(len, curves))
    best = np.mean([np.pad(one, (0, epochs - len(one)), mode="edge") for one in curves], axis=0)
    training = total - standing.extract_seconds
    rising = [
        CostPoint(standing.extract_seconds + training * (number + 1) / epochs, float(one))
        for number, one in enumerate(best)
        if not number or one > best[number - 1]
    ]
    return [*(one for one in rising if one.seconds < total), *points]
