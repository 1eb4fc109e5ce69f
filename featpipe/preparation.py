"""What a training run is given: its targets and rows, and whether it can be done with them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.duplicates import copies_of
from featpipe.errors import HeadError, SplitError
from featpipe.registry import no_such
from featpipe.settings import TrainSettings
from featpipe.split import Split, split_rows
from featpipe.targets import Targets, targets_of

log = logging.getLogger(__name__)


def prepare(cache: FeatureCache, settings: TrainSettings) -> tuple[Targets, Split]:
    """What is to be predicted, and which rows are for what; says which rows are left out."""
    targets = targets_of(cache.table, settings.separator)
    copies = copies_of(cache, settings.leaks) if settings.leaks else None
    split = split_rows(cache.table, settings, cache.ok, strata=targets.strata, copies=copies)
    left_out = int((~cache.ok & cache.table.labelled).sum())
    if left_out:
        log.warning("%d labelled images have no features and are left out.", left_out)
    check_classes(targets, split)
    return targets, split


def check_classes(targets: Targets, split: Split) -> None:
    """Raise SplitError if training rows are not of several classes, and of all of them."""
    if targets.multilabel:
        return
    known = np.unique(targets.values[split.train])
    if len(known) < 2:
        raise SplitError(
            f"There is only one class among the training images: {targets.classes[known[0]]}. Add "
            "images of another, or divide the rows otherwise."
        )
    rows = np.concatenate(list(split.parts().values()))
    strangers = np.setdiff1d(targets.values[rows], known)
    if len(strangers):
        names = ", ".join(targets.classes[label] for label in strangers[:5])
        raise SplitError(
            f"No training image belongs to {names}, which other parts of the split contain. "
            "Divide the rows otherwise (--split random, another --seed or --group)."
        )


def check_rows(
    targets: Targets,
    split: Split,
    settings: TrainSettings,
    budgets: Sequence[int | None],
    against: Sequence[str],
) -> None:
    """Refuse what cannot be done with these rows before anything is computed."""
    scored = len(split.val) or len(split.test)
    if budgets and not scored:
        raise SplitError("A label budget is scored on test or validation rows: give --test.")
    if against and not (scored or split.folds):
        raise SplitError("Paired tests need rows that were not trained on: give --val or --test.")
    if settings.min_precision is not None and not (len(split.val) or split.folds):
        raise SplitError(
            "A threshold is fitted on validation rows, and there are none: give --val above 0, or "
            "--folds, or leave --min-precision out."
        )
    if targets.multilabel and (budgets or against or settings.min_precision is not None):
        raise SplitError(
            "Label budgets, paired tests and --min-precision take one class an image: leave the "
            "separator out, or these."
        )


def by_number(name: str, value: Any, targets: Targets) -> Any:
    """An option of a head, as JSON has it, whose class weights are by the classes' numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if name != "class_weight" or not isinstance(value, Mapping):
        return value
    unknown = [key for key in value if key not in targets.classes]
    if unknown:
        raise HeadError(no_such("class", str(unknown[0]), targets.classes))
    return {targets.classes.index(key): weight for key, weight in value.items()}
