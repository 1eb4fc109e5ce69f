"""Stage two: cached features to a classifier."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from featpipe import checkpoint
from featpipe.budget import BudgetCurve, budget_curve
from featpipe.cache import FeatureCache
from featpipe.calibration import calibrate
from featpipe.classifier import Classifier
from featpipe.crossfit import streamed
from featpipe.device import choose_device, machine_facts
from featpipe.errors import HeadError, LayerError, SettingsError
from featpipe.head import Head
from featpipe.heads import build_head
from featpipe.metrics import (
    MultilabelScores,
    PairedTest,
    Scores,
    compare_predictions,
    score,
    score_multilabel,
)
from featpipe.preparation import by_number, check_classes, check_rows, prepare
from featpipe.result import Result
from featpipe.settings import TrainSettings
from featpipe.split import Split
from featpipe.sweep import Progress, Sweep, plain, run_sweep
from featpipe.targets import Targets, targets_of
from featpipe.tasks import every_view
from featpipe.viewing import Viewing, features_of

log = logging.getLogger(__name__)

BLOCK_VALUES = 1 << 24  # probabilities of training rows at once
PARTS: tuple[str, ...] = ("train", "val", "folds", "test")
OnEpoch = Callable[[dict[str, float]], None]
SELECTING = ("val", "folds")  # what a temperature may be fitted on; never test


def train_head(
    features: FeatureCache | str | Path,
    head: str = "linear",
    settings: TrainSettings | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    layers: Sequence[str] = (),
    on_progress: Progress | None = None,
    budgets: Sequence[int | None] = (),
    against: Sequence[str] = (),
    unfinished: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
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
    unfinished : str or Path
        Folder in which long trainings leave what they have come to; begun again with the same
        arguments they go on from there, to the same end. To be removed once the result is saved.
    on_epoch : callable
        Is given each row of the curves of the last fit, as it is made.
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
                opened, head, settings, sweep, layers, on_progress, budgets, against, unfinished,
                on_epoch, **options,
            )  # fmt: skip
    if unfinished is not None:
        with checkpoint.checkpointing(Path(unfinished), _identity(features, settings)):
            return train_head(
                features, head, settings, sweep, layers, on_progress, budgets, against,
                on_epoch=on_epoch, **options,
            )  # fmt: skip
    cache = features
    targets, split = prepare(cache, settings)
    check_rows(targets, split, settings, budgets, against)
    options = {name: by_number(name, value, targets) for name, value in options.items()}
    sweep = {
        name: [by_number(name, value, targets) for value in values]
        for name, values in (sweep or {}).items()
    }
    if layers and settings.layer is not None:
        raise LayerError(f"layer is {settings.layer}, and layers names others: give one of them.")
    if list(layers) == ["all"]:
        names = list(cache.spec.layers)
    else:
        wanted: Sequence[str | None] = layers or [settings.layer]
        names = list(dict.fromkeys(cache.layer(layer) for layer in wanted))
    begun, found = checkpoint.clock(), None
    unfitted = build_head(head, settings, options)
    for name in against:
        build_head(name, settings, {})
    if targets.multilabel and not unfitted.multilabel:
        raise HeadError(
            f"{head} learns one class an image. With a separator use linear, mlp or logistic, or "
            "leave the separator out."
        )
    if sweep or split.folds or len(names) > 1:
        found = run_sweep(cache, head, settings, options, sweep, names, targets, split, on_progress)
        names, unfitted = [found.chosen.layer], found.head
        options |= found.chosen.options
    curve = None
    if budgets:
        curve = budget_curve(
            cache, names[0], head, settings, options, budgets, targets, split, on_progress
        )
    before = checkpoint.clock() - begun
    unfitted.on_epoch = on_epoch
    classifier, result = fit_and_score(
        cache, names[0], split, head, unfitted, settings, targets, found, curve, before
    )
    if not against:
        return classifier, result
    paired = _paired(cache, names[0], settings, targets, result, against)
    result = replace(result, paired=paired)
    return replace(classifier, result=result.to_dict()), result


def _identity(cache: FeatureCache, settings: TrainSettings) -> str:
    """Of all that a training does not know of itself: its images, and how they are divided."""
    decides = [cache.spec.to_dict(), cache.columns(), asdict(settings)]
    digest = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=16)
    if Path(settings.split).is_file():
        digest.update(Path(settings.split).read_bytes())
    return digest.hexdigest()


def _paired(
    cache: FeatureCache,
    layer: str,
    settings: TrainSettings,
    targets: Targets,
    result: Result,
    against: Sequence[str],
) -> dict[str, PairedTest]:
    """A head against others, on test rows, or those that were validated."""
    part = list(result.scores)[-1]
    assert result.split is not None
    rows = result.split.train if part == "folds" else result.split.parts()[part]
    repeats = settings.repeats if settings.folds else 1
    same = replace(settings, layer=layer, min_precision=None, repeats=repeats)
    found = {}
    for name in against:
        _, other = train_head(cache, name, same)
        found[name] = compare_predictions(
            targets.values[rows], result.proba[part], other.proba[part]
        )
    return found


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
        ``min_precision``, ``memory``, ``views`` and ``tta`` are used.
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
    check_classes(targets, split)
    begun = checkpoint.clock()
    head = head.on(cache.spec, layer, cache.layers[layer])
    rows = split.parts()
    truth = {name: targets.values[some] for name, some in rows.items()}
    every = np.sort(np.concatenate(list(rows.values())))
    stream, viewing = streamed(cache, layer, every, settings, head), Viewing.of(cache, settings)
    held, trained, scored = viewing.held, viewing.trained, viewing.scored
    told = (layer, *rows.values(), viewing, head.get_params())
    if stream is None:
        parts = {
            name: features_of(cache, layer, some, held if name == "train" else scored, head.halves)
            for name, some in rows.items()
        }
        validation = (parts["val"][::scored], truth["val"]) if "val" in parts else None
        own = parts["train"]
        seen = own if trained == held else own[::held]
        with checkpoint.about(*told):
            head.fit_views(seen, truth["train"], validation, trained)
        parts["train"] = own if scored == held else own[::held]
        blocks = {name: _in_blocks(some, len(targets.classes)) for name, some in parts.items()}
    else:
        log.info("Features are read block by block: memory does not hold them.")
        places = {name: np.searchsorted(every, some) * held for name, some in rows.items()}
        select = places.get("val", every[:0])
        labels = np.repeat(targets.values[every], held, axis=0)
        with checkpoint.about(*told):
            head.fit_streamed(stream, labels, places["train"], select, trained)
        blocks = {name: stream.blocks(every_view(some, scored)) for name, some in places.items()}
    head.on_epoch = None  # it is kept, and may be pickled
    said = {name: viewing.means(map(head.predict_proba, some)) for name, some in blocks.items()}
    predicted = None
    if not targets.multilabel:  # training rows may be many: what they look like is not kept
        best = [block.argmax(axis=1) for block in said.pop("train")]
        predicted = head.classes_[np.concatenate(best)]
    raw = {name: _proba(head, some, len(targets.classes)) for name, some in said.items()}
    if split.folds and sweep is not None:
        held_out, raw_folds = sweep.held_out
        truth["folds"], raw["folds"] = targets.values[held_out], raw_folds
    fitted_on = next((name for name in SELECTING if name in raw), None)
    calibration, proba = calibrate(raw, truth, fitted_on, settings.min_precision)
    scores: dict[str, Scores | MultilabelScores] = {}
    if predicted is not None:
        scores["train"] = score(truth["train"], predicted, targets.classes)
    scores |= {name: _scores(truth[name], proba[name], targets) for name in PARTS if name in raw}
    seconds += checkpoint.clock() - begun
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
        "spec": cache.spec.to_dict(),
        "views": {"trained": trained, "scored": scored},
        "machine": machine_facts(choose_device(getattr(head, "device", "cpu"))),
        "extraction_seconds": cache.conditions.get("seconds"),
    }
    result = Result(
        scores, head.curves_, seconds, head.n_parameters, conditions, sweep, budget, calibration,
        split, proba,
    )  # fmt: skip
    classifier = Classifier(
        cache.spec if settings.tta else cache.spec.plain(),
        layer, head_name, head, targets.classes, result.to_dict(),
        calibration.get("temperature", 1.0), calibration.get("threshold"),
    )  # fmt: skip
    return classifier, result


def _in_blocks(features: np.ndarray, classes: int) -> Iterable[np.ndarray]:
    """Rows of which so many are predicted at once that probabilities stay small."""
    size = max(1, BLOCK_VALUES // classes)
    return (features[start : start + size] for start in range(0, len(features), size))


def _proba(head: Head, blocks: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """What a head says of images, block by block, as columns of all classes."""
    found = np.concatenate(list(blocks))
    proba = np.zeros((len(found), classes))
    proba[:, head.classes_] = found
    return proba


def _scores(truth: np.ndarray, proba: np.ndarray, targets: Targets) -> Scores | MultilabelScores:
    if targets.multilabel:
        return score_multilabel(truth, proba, targets.classes)
    return score(truth, proba.argmax(axis=1), targets.classes, proba)
