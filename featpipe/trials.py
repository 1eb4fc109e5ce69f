"""Running a route on the rounds of a comparison: trained, chosen by selecting rows, scored."""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from featpipe.cache import FeatureCache
from featpipe.calibration import apply_temperature
from featpipe.checkpoint import clock, present
from featpipe.classifier import Classifier
from featpipe.crossfit import SharedRows
from featpipe.device import choose_device
from featpipe.errors import HeadError
from featpipe.heads import build_head
from featpipe.images import ImageSource
from featpipe.kept import Trial
from featpipe.peak import measured
from featpipe.pixel_rows import Decoded
from featpipe.preparation import by_number
from featpipe.result import Result
from featpipe.rounds import Round
from featpipe.route import Route
from featpipe.scratch import train_from_scratch
from featpipe.settings import SEEDS, CompareSettings, TrainSettings
from featpipe.sweep import LOWER_IS_BETTER, validation_figures
from featpipe.targets import Targets
from featpipe.tasks import Outcome, Task
from featpipe.train import OnEpoch, fit_and_score
from featpipe.viewing import features_of

TIMED = 256  # rows that are predicted to know how fast that is


@dataclass(frozen=True, eq=False)
class Ground:
    """What all routes of a comparison stand on."""

    source: ImageSource
    targets: Targets
    settings: CompareSettings

    def training(self, route: Route, one: Round | None = None) -> TrainSettings:
        """Stage two's settings for a route; in a round, with what that draws."""
        drawn = one.seed if one else 0
        seed = (self.settings.seed + route.seed + drawn) % (SEEDS + 1)
        return replace(self.settings.rows, folds=0, repeats=1, seed=seed)

    def candidates(self, route: Route) -> list[dict[str, Any]]:
        """Options of each candidate, as its head takes them."""
        if route.kind == "scratch":
            return route.candidates
        return [
            {name: by_number(name, value, self.targets) for name, value in options.items()}
            for options in route.candidates
        ]


class _Choice:
    """The best of a round's candidates, found one after the other in any order."""

    def __init__(self, ground: Ground, route: Route, one: Round) -> None:
        self._truth, self._metric = ground.targets.values[one.select], ground.settings.select
        self._swept, self._options = list(route.sweep), ground.candidates(route)
        self._merit: tuple[float, float, int] | None = None
        self.told: dict[int, dict[str, Any]] = {}
        self.best = -1

    def add(self, number: int, selecting: np.ndarray | None, note: str = "") -> bool:
        """Take a candidate in, and say whether it is the best until now."""
        told: dict[str, Any] = {name: self._options[number][name] for name in self._swept}
        told = self.told[number] = {"options": told, "value": None, "note": note}
        if selecting is None:
            return False
        merit = (0.0, 0.0, -number)
        if len(selecting):
            found = validation_figures(self._truth, selecting)
            told["value"] = found[self._metric]
            sign = -1 if self._metric in LOWER_IS_BETTER else 1
            merit = (round(sign * found[self._metric], 12), -found["log_loss"], -number)
        if self._merit is not None and merit <= self._merit:
            return False
        self._merit, self.best = merit, number
        return True

    @property
    def every(self) -> list[dict[str, Any]]:
        return [self.told[number] for number in sorted(self.told)]

    def chosen(self) -> dict[str, Any]:
        """Options of the best; raises HeadError if none could be trained."""
        if self.best < 0:
            notes = ", ".join(sorted({told["note"] for told in self.told.values()}))
            raise HeadError(f"No candidate could be trained: {notes}")
        return self._options[self.best]


def head_trials(
    ground: Ground, route: Route, cache: FeatureCache, rounds: list[Round], facts: str
) -> dict[str, Trial]:
    """A head on all rounds at once, which heads can do for less than their sum.

    Parameters
    ----------
    ground : Ground
    route : Route
    cache : FeatureCache
    rounds : list of Round
    facts : str
        The round of which curves, parameters and the speed of prediction are taken.

    Raises
    ------
    HeadError
        If no candidate could be trained in a round.
    """
    assert route.head is not None
    settings, targets = ground.training(route), ground.targets
    heads = [build_head(route.head, settings, some) for some in ground.candidates(route)]
    layer, begun = cache.layer(route.layer), clock()
    tasks = [
        Task(one.fit, one.select, np.union1d(one.select, one.scored), seed=one.seed)
        for one in rounds
    ]
    choices = [_Choice(ground, route, one) for one in rounds]
    best: dict[int, Outcome] = {}
    seconds = np.zeros(len(rounds))
    with measured(choose_device(settings.device)) as peak:
        pool = np.unique(np.concatenate([one.pool for one in rounds]))
        rows = np.unique(np.concatenate([pool, *(one.scored for one in rounds)]))
        shared = SharedRows(cache, layer, rows, pool, targets, settings, heads[0])
        for outcome in shared.run(heads, tasks):
            one, task = rounds[outcome.task], tasks[outcome.task]
            seconds[outcome.task] += outcome.seconds
            selecting = None
            if outcome.proba is not None:
                selecting = outcome.proba[np.searchsorted(task.scored, one.select)]
            if choices[outcome.task].add(outcome.head, selecting, outcome.note):
                best[outcome.task] = outcome
        del shared
    seconds += max(0.0, clock() - begun - seconds.sum()) / len(rounds)
    found = {}
    for place, one in enumerate(rounds):
        options, outcome = choices[place].chosen(), best[place]
        assert outcome.proba is not None
        where = tasks[place].scored
        trial = Trial(
            outcome.proba[np.searchsorted(where, one.scored)],
            outcome.proba[np.searchsorted(where, one.select)],
            _plain(options),
            choices[place].every,
            float(seconds[place]),
            outcome.epochs,
            peak_bytes=peak.resident,
            peak_device_bytes=peak.device,
            peak_meaning=peak.meaning,
            resumed=_resumed(),
        )
        if one.name == facts:
            classifier, result = _fitted(ground, route, cache, one, options)
            trial = _with_facts(trial, result, _head_seconds(classifier, cache, layer, one))
        found[one.name] = trial
    return found


def network_trial(
    ground: Ground,
    route: Route,
    one: Round,
    cache: FeatureCache | None = None,
    decoded: Decoded | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trial:
    """A network on one round: the part of one behind a cut, or one from scratch.

    Within `featpipe.checkpoint.checkpointing` it goes on where it was interrupted.
    """
    choice, seconds, predict = _Choice(ground, route, one), 0.0, None
    _load_optimizers()
    kept: tuple[Result, float] | None = None
    device = choose_device(ground.settings.device)
    with measured(device) as peak:
        for number, options in enumerate(ground.candidates(route)):
            begun = clock()
            try:
                if cache is not None:
                    classifier, result = _fitted(ground, route, cache, one, options, on_epoch)
                    took = clock() - begun
                    layer = cache.layer(route.layer)
                    predict = _head_seconds(classifier, cache, layer, one)
                else:
                    assert decoded is not None
                    _, result = train_from_scratch(
                        ground.source, one.split, route.scratch(options),
                        ground.training(route, one), on_epoch, decoded=decoded,
                    )  # fmt: skip
                    took = clock() - begun
                    predict = result.conditions["predict_seconds"]
            except HeadError as error:
                choice.add(number, None, str(error))
                continue
            seconds += took
            selecting = _raw(result, "val") if len(one.select) else np.empty((0, 0))
            if choice.add(number, selecting):
                kept = result, predict
    options = choice.chosen()
    assert kept is not None
    result, predict = kept
    trial = Trial(
        _raw(result, one.part),
        _raw(result, "val") if len(one.select) else np.empty((0, 0)),
        _plain(options),
        choice.every,
        seconds,
        len(result.curves),
        prepare_seconds=decoded.seconds if decoded else 0.0,
        peak_bytes=peak.resident,
        peak_device_bytes=peak.device,
        peak_meaning=peak.meaning,
        resumed=_resumed(),
    )
    return _with_facts(trial, result, predict)


def budget_trial(
    ground: Ground,
    route: Route,
    one: Round,
    options: Mapping[str, Any],
    cache: FeatureCache | None = None,
    decoded: Decoded | None = None,
) -> float:
    """Accuracy of a network that was trained on `one.fit` alone, with options that are chosen."""
    if cache is not None:
        _, result = _fitted(ground, route, cache, one, options)
    else:
        _, result = train_from_scratch(
            ground.source, one.split, route.scratch(options), ground.training(route, one),
            decoded=decoded,
        )  # fmt: skip
    return result.scores[one.part].accuracy


def _fitted(
    ground: Ground,
    route: Route,
    cache: FeatureCache,
    one: Round,
    options: Mapping[str, Any],
    on_epoch: OnEpoch | None = None,
) -> tuple[Classifier, Result]:
    assert route.head is not None
    settings = ground.training(route, one)
    own = {"trust_code": True} if route.trains_network else {}
    if route.trains_network and route.extract.get("weights"):
        own["weights"] = route.extract["weights"]
    head = build_head(route.head, settings, {**own, **options})
    head.on_epoch = on_epoch
    layer = cache.layer(route.layer)
    return fit_and_score(cache, layer, one.split, route.head, head, settings, ground.targets)


def _head_seconds(classifier: Classifier, cache: FeatureCache, layer: str, one: Round) -> float:
    """Of predicting an image from its features."""
    head = classifier.head
    X = features_of(cache, layer, one.scored[:TIMED], halves=head.halves)
    begun = time.perf_counter()
    head.predict_proba(X)
    return (time.perf_counter() - begun) / len(X)


def _with_facts(trial: Trial, result: Result, predict: float | None) -> Trial:
    conditions = {
        name: value for name, value in result.conditions.items() if name not in ("features",)
    }
    return replace(
        trial, parameters=int(result.parameters), predict_seconds=predict,
        curves=result.curves, conditions=conditions,
    )  # fmt: skip


def _raw(result: Result, part: str) -> np.ndarray:
    """Probabilities as the network gives them, before the temperature."""
    temperature = float(result.calibration.get("temperature", 1.0))
    return apply_temperature(result.proba[part], 1 / temperature)


@functools.cache
def _load_optimizers() -> None:
    """What torch imports with the first optimizer takes seconds that are of no route."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)


def _resumed() -> bool:
    kept = present()
    return bool(kept and kept.resumed)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
