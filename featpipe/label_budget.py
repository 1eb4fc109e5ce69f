"""How a route's accuracy grows with the labelled images of each class, over all folds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.crossfit import SharedRows
from featpipe.errors import HeadError
from featpipe.heads import build_head
from featpipe.kept import Trial
from featpipe.ranking import accuracy_interval
from featpipe.rounds import Round, Rounds
from featpipe.route import Route
from featpipe.route_results import SizePoint
from featpipe.tasks import Task
from featpipe.trials import Ground

Size = int | None  # labelled images a class; None for all


def budget_rounds(
    rounds: Rounds, targets: np.ndarray, sizes: Sequence[int], seed: int
) -> dict[Size, list[Round]]:
    """Rounds that train on a few labelled images a class, and on all of them.

    Those of the first repetition; each draws its images once, so that a smaller budget is a part
    of a larger one. No row selects.
    """
    found: dict[Size, list[Round]] = {}
    nothing = rounds.split.train[:0]
    for number in rounds.once:
        one = rounds.ranking[number]
        pool = np.setdiff1d(one.pool, one.scored)
        order = np.random.default_rng([seed, number]).permutation(len(pool))
        labels = targets[pool]
        drawn = [pool[order[labels[order] == label]] for label in np.unique(labels)]
        most = max(map(len, drawn))
        for size in [*sorted({size for size in sizes if size < most}), None]:
            few = np.sort(np.concatenate([rows[:size] for rows in drawn]))
            name = f"{one.name}-{size or 'all'}"
            found.setdefault(size, []).append(Round(name, few, nothing, one.scored, seed=one.seed))
    # A size that not all folds have would be another mean.
    folds = len(rounds.once)
    return {size: some for size, some in found.items() if len(some) == folds}


def head_curve(
    ground: Ground,
    route: Route,
    cache: FeatureCache,
    rounds: Rounds,
    wanted: Mapping[Size, Sequence[Round]],
    trials: Mapping[str, Trial],
) -> list[SizePoint]:
    """Of a head, with the options that each fold chose; all fits at once.

    Raises
    ------
    HeadError
        If a fit fails.
    """
    assert route.head is not None
    settings, targets = ground.training(route), ground.targets
    layer = cache.layer(route.layer)
    every = [one for some in wanted.values() for one in some]
    rows = np.unique(np.concatenate([np.union1d(one.fit, one.scored) for one in every]))
    pool = np.unique(np.concatenate([one.fit for one in every]))
    # Fits of equal options go together.
    names = [rounds.ranking[number].name for number in rounds.once]
    chosen = [{**trials[name].options} for name in names]
    heads = [build_head(route.head, settings, _tuples(options)) for options in chosen]
    shared = SharedRows(cache, layer, rows, pool, targets, settings, heads[0])
    right: dict[str, float] = {}
    for options in _different(chosen):
        places = [place for place, one in enumerate(chosen) if one == options]
        some = [found[place] for found in wanted.values() for place in places]
        tasks = [Task(one.fit, one.select, one.scored, seed=one.seed) for one in some]
        for outcome in shared.run([heads[places[0]]], tasks):
            one = some[outcome.task]
            if outcome.proba is None:
                raise HeadError(outcome.note)
            hits = outcome.proba.argmax(axis=1) == targets.values[one.scored]
            right[one.name] = float(hits.mean())
    return points(wanted, lambda one: right[one.name])


def points(
    wanted: Mapping[Size, Sequence[Round]], accuracy: Callable[[Round], float]
) -> list[SizePoint]:
    """A curve, given the accuracy of each of its rounds."""
    found = []
    for size, some in wanted.items():
        values = [accuracy(one) for one in some]
        share = float(np.mean([len(one.scored) / len(one.fit) for one in some]))
        # Few rows are hardly shared by two folds: what they share is that of the pool.
        share = min(share, 1 / max(1, len(some) - 1))
        mean, low, high = accuracy_interval(values, share, sum(len(one.scored) for one in some))
        assert mean is not None
        interval = None if low is None or high is None else (low, high)
        found.append(SizePoint(size, mean, interval))
    return found


def _different(options: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for one in options:
        if one not in found:
            found.append(one)
    return found


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
