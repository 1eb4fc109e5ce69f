"""Stage two: cached features to a classifier."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.classifier import Classifier
from featpipe.descent import Epochs
from featpipe.device import choose_device, machine_facts
from featpipe.durable import save_json
from featpipe.errors import SplitError
from featpipe.heads import Head, make_head
from featpipe.metrics import Scores, score
from featpipe.settings import TrainSettings
from featpipe.split import Split, split_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Result:
    """What a training run found.

    Attributes
    ----------
    scores : dict of str to Scores
        Of ``train``, ``val`` and ``test``, those that have rows.
    curves : list of dict
        One an epoch; empty for heads without epochs.
    seconds : float
        Reading the features, fitting and scoring.
    parameters : int
        Numbers that were learnt.
    conditions : dict
        Everything the figures depend on.
    """

    scores: dict[str, Scores]
    curves: Epochs
    seconds: float
    parameters: int
    conditions: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "curves": self.curves,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "conditions": self.conditions,
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        save_json(Path(path), self.to_dict())


def train_head(
    features: FeatureCache | str | Path,
    head: str = "linear",
    settings: TrainSettings | None = None,
    **options: Any,
) -> tuple[Classifier, Result]:
    """Train a head on cached features.

    Parameters
    ----------
    features : FeatureCache, str or Path
        A finished cache.
    head : str
        ``linear``, ``mlp``, ``logistic``, ``ridge``, ``lda``, ``knn``, ``centroid``,
        ``sklearn-logistic``, or an installed plug-in's name.
    settings : TrainSettings
        Split and layer.
    **options
        The head's own parameters, such as ``lr`` or ``hidden``.

    Returns
    -------
    classifier : Classifier
    result : Result
        Validation rows select the epoch; test rows are scored once, after that.

    Raises
    ------
    SplitError
        If the labels do not allow the split.
    HeadError
        If the head does not take an option, or cannot be trained.
    """
    settings = settings or TrainSettings()
    if not isinstance(features, FeatureCache):
        with FeatureCache.open(features) as opened:
            return train_head(opened, head, settings, **options)
    cache = features
    split = split_rows(cache.table, settings, cache.ok)
    left_out = int((~cache.ok & cache.table.labelled).sum())
    if left_out:
        log.warning("%d labelled images have no features and are left out.", left_out)
    unfitted = build_head(head, settings, options)
    return fit_and_score(cache, cache.layer(settings.layer), split, head, unfitted)


def build_head(name: str, settings: TrainSettings, options: dict[str, Any]) -> Head:
    """The head, given the run's seed and device where it has a use for them."""
    unfitted = make_head(name, options)
    shared = {"seed": settings.seed, "device": settings.device}
    own = {key: value for key, value in shared.items() if key in unfitted.get_params()}
    unfitted.set_params(**{**own, **options})
    return unfitted


def fit_and_score(
    cache: FeatureCache, layer: str, split: Split, head_name: str, head: Head
) -> tuple[Classifier, Result]:
    """Fit `head` on the training rows of a split and score every part of it."""
    labels = cache.table.labels
    assert labels is not None
    begun = time.perf_counter()
    parts = {
        name: cache.features(layer, rows).reshape(len(rows), -1).astype(np.float32, copy=False)
        for name, rows in split.parts().items()
    }
    targets = {name: labels[rows] for name, rows in split.parts().items()}
    strangers = np.setdiff1d(np.concatenate(list(targets.values())), targets["train"])
    if len(strangers):
        names = ", ".join(cache.table.classes[label] for label in strangers[:5])
        raise SplitError(
            f"No training image belongs to {names}, which other parts of the split contain. "
            "Divide the rows otherwise (--split random, another --seed or --group)."
        )
    validation = (parts["val"], targets["val"]) if "val" in parts else None
    head.fit(parts["train"], targets["train"], validation=validation)
    scores = {
        name: score(targets[name], head.predict(rows), cache.table.classes)
        for name, rows in parts.items()
    }
    seconds = time.perf_counter() - begun
    conditions = {
        "features": cache.path.name,
        "layer": layer,
        "dimensions": int(parts["train"].shape[1]),
        "head": head_name,
        "options": {key: _plain(value) for key, value in head.get_params().items()},
        "split": {"origin": split.origin, **{k: len(v) for k, v in split.parts().items()}},
        "spec": asdict(cache.spec),
        "machine": machine_facts(choose_device(getattr(head, "device", "cpu"))),
        "extraction_seconds": cache.conditions.get("seconds"),
    }
    result = Result(scores, head.curves_, seconds, head.n_parameters, conditions)
    classifier = Classifier(
        cache.spec, layer, head_name, head, cache.table.classes, result.to_dict()
    )
    return classifier, result


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
