"""Stage two: cached features to a classifier."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.budget import BudgetCurve, budget_curve
from featpipe.cache import FeatureCache
from featpipe.calibration import (
    apply_temperature,
    confidence_threshold,
    coverage,
    fit_temperature,
    reliability,
)
from featpipe.classifier import Classifier
from featpipe.crossfit import features_of, streamed
from featpipe.descent import Epochs
from featpipe.device import choose_device, machine_facts
from featpipe.durable import save_json
from featpipe.errors import HeadError, LayerError, SettingsError, SplitError
from featpipe.heads import Head, build_head
from featpipe.metrics import (
    MultilabelScores,
    PairedTest,
    Scores,
    compare_predictions,
    score,
    score_multilabel,
)
from featpipe.settings import TrainSettings
from featpipe.split import Split, split_rows
from featpipe.sweep import Progress, Sweep, plain, run_sweep
from featpipe.targets import Targets, targets_of

log = logging.getLogger(__name__)

BLOCK_VALUES = 1 << 24  # probabilities of training rows at once
PARTS: tuple[str, ...] = ("train", "val", "folds", "test")
SELECTING = ("val", "folds")  # what a temperature may be fitted on; never test


@dataclass(frozen=True, eq=False)
class Result:
    """What a training run found.

    Attributes
    ----------
    scores : dict of str to Scores or MultilabelScores
        Of ``train``, ``val``, ``folds`` and ``test``, those that have rows. ``folds`` is each
        training row as a fit without it says. Of ``train`` only the predicted classes are scored.
    curves : list of dict
        One an epoch; empty for heads without epochs.
    seconds : float
        Reading the features, fitting and scoring.
    parameters : int
        Numbers that were learnt.
    conditions : dict
        Everything the figures depend on.
    sweep : Sweep or None
        The candidates, where there was a choice or there were folds.
    budget : BudgetCurve or None
    calibration : dict
        ``temperature``, ``threshold`` and where they were fitted; ``reliability`` before and
        after, of test rows where there are some. Empty without validation rows.
    split : Split or None
        The rows, as numbers of the table's.
    proba : dict of str to float array, shape (rows, classes)
        Calibrated, of each part but ``train``.
    paired : dict of str to PairedTest
        This head against others on the same rows.
    """

    scores: Mapping[str, Scores | MultilabelScores]
    curves: Epochs
    seconds: float
    parameters: int
    conditions: dict[str, Any]
    sweep: Sweep | None = None
    budget: BudgetCurve | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    split: Split | None = None
    proba: Mapping[str, np.ndarray] = field(default_factory=dict)
    paired: Mapping[str, PairedTest] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "curves": self.curves,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "conditions": self.conditions,
            "sweep": self.sweep.to_dict() if self.sweep else None,
            "budget": self.budget.to_dict() if self.budget else None,
            "calibration": self.calibration,
            "paired": {name: asdict(test) for name, test in self.paired.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        save_json(Path(path), self.to_dict())


def train_head(
    features: FeatureCache | str | Path,
    head: str = "linear",
    settings: TrainSettings | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    layers: Sequence[str] = (),
    on_progress: Progress | None = None,
    budgets: Sequence[int | None] = (),
    against: Sequence[str] = (),
    **options: Any,
) -> tuple[Classifier, Result]:
    """Train a head on cached features.

    Parameters
    ----------
    features : FeatureCache, str or Path
        A finished cache.
    head : str
        ``linear``, ``mlp``, ``logistic``, ``ridge``, ``lda``, ``knn``, ``centroid``,
        ``sklearn-logistic``, ``sklearn:MODULE.CLASS``, or an installed plug-in's name.
    settings : TrainSettings
        Split, folds and layer.
    sweep : mapping of str to sequence
        Values of options to choose among, every combination of them, on the folds' validation
        rows or, without folds, on the split's.
    layers : sequence of str
        Layers to choose among, too; ``("all",)`` for all of the cache.
    on_progress : callable
        Is given fits done and fits in all, of a sweep.
    budgets : sequence of int or None
        Labelled images a class, None for all of them: how accuracy grows with their number, by
        the head that was chosen; see `featpipe.budget.budget_curve`.
    against : sequence of str
        Other heads, trained with their defaults on the same rows, for paired tests.
    **options
        The head's own parameters, such as ``lr`` or ``hidden``.

    Returns
    -------
    classifier : Classifier
        With folds, fitted on all training rows.
    result : Result
        Validation rows select the epoch, the candidate and the temperature; test rows are scored
        once, after that.

    Raises
    ------
    SplitError
        If the labels do not allow the split.
    HeadError
        If the head does not take an option, or cannot be trained.
    """
    settings = settings or TrainSettings()
    if settings.repeats > 1 and not (settings.folds or budgets):
        raise SettingsError(
            f"repeats is {settings.repeats}, but there are neither folds nor a label budget to "
            "repeat: give one of them, or leave repeats out."
        )
    if not isinstance(features, FeatureCache):
        with FeatureCache.open(features) as opened:
            return train_head(
                opened, head, settings, sweep, layers, on_progress, budgets, against, **options
            )
    cache = features
    targets, split = prepare(cache, settings)
    if layers and settings.layer is not None:
        raise LayerError(f"layer is {settings.layer}, and layers names others: give one of them.")
    if list(layers) == ["all"]:
        names = list(cache.spec.layers)
    else:
        wanted: Sequence[str | None] = layers or [settings.layer]
        names = list(dict.fromkeys(cache.layer(layer) for layer in wanted))
    begun, found = time.perf_counter(), None
    unfitted = build_head(head, settings, options)
    for name in against:
        build_head(name, settings, {})
    if targets.multilabel and not unfitted.multilabel:
        raise HeadError(
            f"{head} learns one class an image. With a separator use linear, mlp or logistic, or "
            "leave the separator out."
        )
    if sweep or split.folds or len(names) > 1:
        found = run_sweep(
            cache, head, settings, options, sweep or {}, names, targets, split, on_progress
        )
        names, unfitted = [found.chosen.layer], found.head
        options |= found.chosen.options
    curve = None
    if budgets:
        curve = budget_curve(
            cache, names[0], head, settings, options, budgets, targets, split, on_progress
        )
    before = time.perf_counter() - begun
    classifier, result = fit_and_score(
        cache, names[0], split, head, unfitted, settings, targets, found, curve, before
    )
    if not against:
        return classifier, result
    paired = _paired(cache, names[0], settings, targets, result, against)
    result = replace(result, paired=paired)
    return replace(classifier, result=result.to_dict()), result


def _paired(
    cache: FeatureCache,
    layer: str,
    settings: TrainSettings,
    targets: Targets,
    result: Result,
    against: Sequence[str],
) -> dict[str, PairedTest]:
    """A head against others, on test rows, or those that were validated."""
    if targets.multilabel:
        raise HeadError("Paired tests take one class an image; leave --against out.")
    part = list(result.scores)[-1]
    assert result.split is not None
    rows = result.split.train if part == "folds" else result.split.parts()[part]
    same = replace(settings, layer=layer, min_precision=None)
    found = {}
    for name in against:
        _, other = train_head(cache, name, same)
        found[name] = compare_predictions(
            targets.values[rows], result.proba[part], other.proba[part]
        )
    return found


def prepare(cache: FeatureCache, settings: TrainSettings) -> tuple[Targets, Split]:
    """What is to be predicted, and which rows are for what; says which rows are left out."""
    targets = targets_of(cache.table, settings.separator)
    split = split_rows(cache.table, settings, cache.ok, strata=targets.strata)
    left_out = int((~cache.ok & cache.table.labelled).sum())
    if left_out:
        log.warning("%d labelled images have no features and are left out.", left_out)
    if not targets.multilabel:
        rows = np.concatenate(list(split.parts().values()))
        strangers = np.setdiff1d(targets.values[rows], targets.values[split.train])
        if len(strangers):
            names = ", ".join(targets.classes[label] for label in strangers[:5])
            raise SplitError(
                f"No training image belongs to {names}, which other parts of the split contain. "
                "Divide the rows otherwise (--split random, another --seed or --group)."
            )
    return targets, split


def fit_and_score(
    cache: FeatureCache,
    layer: str,
    split: Split,
    head_name: str,
    head: Head,
    settings: TrainSettings,
    targets: Targets | None = None,
    sweep: Sweep | None = None,
    budget: BudgetCurve | None = None,
    seconds: float = 0.0,
) -> tuple[Classifier, Result]:
    """Fit `head` on the training rows of a split and score every part of it.

    Parameters
    ----------
    cache : FeatureCache
    layer : str
    split : Split
    head_name : str
    head : Head
        Unfitted.
    settings : TrainSettings
        ``min_precision`` and ``memory`` are used.
    targets : Targets
        The table's own classes, if left out.
    sweep : Sweep
        That chose the head; its held-out probabilities are scored as the part ``folds``, where
        there are folds.
    budget : BudgetCurve
        For the result.
    seconds : float
        That both of them took.
    """
    targets = targets or targets_of(cache.table)
    begun = time.perf_counter()
    rows = split.parts()
    truth = {name: targets.values[some] for name, some in rows.items()}
    every = np.sort(np.concatenate(list(rows.values())))
    stream = streamed(cache, layer, every, settings, head)
    if stream is None:
        parts = {name: features_of(cache, layer, some) for name, some in rows.items()}
        validation = (parts["val"], truth["val"]) if "val" in parts else None
        head.fit(parts["train"], truth["train"], validation=validation)
        blocks = {name: _in_blocks(some, len(targets.classes)) for name, some in parts.items()}
    else:
        log.info("Features are read block by block: memory does not hold them.")
        places = {name: np.searchsorted(every, some) for name, some in rows.items()}
        select = places.get("val", every[:0])
        head.fit_streamed(stream, targets.values[every], places["train"], select)
        blocks = {name: stream.blocks(some) for name, some in places.items()}
    predicted = None
    if not targets.multilabel:  # training rows may be many: what they look like is not kept
        predicted = np.concatenate([head.predict(block) for block in blocks.pop("train")])
    raw = {name: _proba(head, some, len(targets.classes)) for name, some in blocks.items()}
    if split.folds and sweep is not None:
        held_out, raw_folds = sweep.held_out
        truth["folds"], raw["folds"] = targets.values[held_out], raw_folds
    fitted_on = next((name for name in SELECTING if name in raw), None)
    calibration, proba = _calibrate(raw, truth, fitted_on, settings.min_precision)
    scores: dict[str, Scores | MultilabelScores] = {}
    if predicted is not None:
        scores["train"] = score(truth["train"], predicted, targets.classes)
    scores |= {name: _scores(truth[name], proba[name], targets) for name in PARTS if name in raw}
    seconds += time.perf_counter() - begun
    conditions = {
        "features": cache.path.name,
        "layer": layer,
        "dimensions": head.n_features_in_,
        "head": head_name,
        "options": {key: plain(value) for key, value in head.get_params().items()},
        "split": {
            "origin": split.origin,
            **{k: len(v) for k, v in rows.items()},
            **({"folds": len(split.folds)} if split.folds else {}),
        },
        "spec": asdict(cache.spec),
        "machine": machine_facts(choose_device(getattr(head, "device", "cpu"))),
        "extraction_seconds": cache.conditions.get("seconds"),
    }
    result = Result(
        scores, head.curves_, seconds, head.n_parameters, conditions, sweep, budget, calibration,
        split, proba,
    )  # fmt: skip
    classifier = Classifier(
        cache.spec, layer, head_name, head, targets.classes, result.to_dict(),
        calibration.get("temperature", 1.0), calibration.get("threshold"),
    )  # fmt: skip
    return classifier, result


def _in_blocks(features: np.ndarray, classes: int) -> Iterable[np.ndarray]:
    """Rows of which so many are predicted at once that probabilities stay small."""
    size = max(1, BLOCK_VALUES // classes)
    return (features[start : start + size] for start in range(0, len(features), size))


def _proba(head: Head, blocks: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """What a head says of features, block by block, as columns of all classes."""
    found = np.concatenate([head.predict_proba(block) for block in blocks])
    proba = np.zeros((len(found), classes))
    proba[:, head.classes_] = found
    return proba


def _scores(truth: np.ndarray, proba: np.ndarray, targets: Targets) -> Scores | MultilabelScores:
    if targets.multilabel:
        return score_multilabel(truth, proba, targets.classes)
    return score(truth, proba.argmax(axis=1), targets.classes, proba)


def _calibrate(
    raw: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    fitted_on: str | None,
    min_precision: float | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Temperature and threshold by validation rows, and every part's probabilities with it."""
    if fitted_on is None:
        if min_precision is not None:
            raise HeadError(
                "A threshold is fitted on validation rows, and there are none: give --val above "
                "0, or --folds, or leave --min-precision out."
            )
        return {}, raw
    labels = truth[fitted_on]
    multilabel = labels.ndim == 2
    mistakes = (
        ((raw[fitted_on] >= 0.5) != labels)
        if multilabel
        else (raw[fitted_on].argmax(axis=1) != labels)
    )
    # Where validation knows no mistake, nothing says how often there will be one.
    temperature = fit_temperature(raw[fitted_on], labels, multilabel) if mistakes.any() else 1.0
    proba = {name: apply_temperature(p, temperature, multilabel) for name, p in raw.items()}
    shown = "test" if "test" in raw else fitted_on
    calibration: dict[str, Any] = {
        "temperature": temperature,
        "fitted_on": fitted_on,
        "n": len(labels),
        "shown": shown,
        "before": reliability(raw[shown], truth[shown]),
        "after": reliability(proba[shown], truth[shown]),
    }
    if min_precision is not None:
        if multilabel:
            raise HeadError("--min-precision takes one class an image; leave it out.")
        threshold = confidence_threshold(proba[fitted_on], labels, min_precision)
        if threshold is None:
            raise HeadError(
                f"No confidence makes validation predictions right in {min_precision:.1%} of the "
                "cases: ask for a lower --min-precision, or train a better head."
            )
        calibration["threshold"] = threshold
        calibration["min_precision"] = min_precision
        calibration["abstention"] = {
            name: _abstention(proba[name], truth[name], threshold) for name in raw
        }
    return calibration, proba


def _abstention(proba: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, Any]:
    """What share is predicted at all, and how often that is right."""
    sure = proba.max(axis=1) >= threshold
    right = proba[sure].argmax(axis=1) == labels[sure]
    return {
        "coverage": coverage(proba, threshold),
        "precision": float(right.mean()) if sure.any() else None,
    }
