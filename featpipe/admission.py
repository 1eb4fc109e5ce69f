"""What is refused of a comparison before anything is computed, or once its rows are known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featpipe.copies import Copies
from featpipe.errors import RouteError, SplitError
from featpipe.rounds import Rounds
from featpipe.route import Route
from featpipe.settings import CompareSettings
from featpipe.split import Split, split_rows
from featpipe.split_file import load_split
from featpipe.table import ImageTable


def check_images(table: ImageTable, routes: Sequence[Route], settings: CompareSettings) -> None:
    """Refuse images that nothing can be compared on, before any is looked at.

    Raises
    ------
    SplitError
        If fewer than two classes have images.
    RouteError
        If a route has candidates, and there will be no rows to choose among them.
    """
    there = [name for name, count in table.class_counts().items() if count]
    if len(there) == 1:
        raise SplitError(
            f"All images with a label are of one class, {there[0]!r}: there is nothing to tell "
            "apart. Add images of another class, one folder each or by --label-column."
        )
    without = settings.split == "random" or (settings.split == "auto" and table.splits is None)
    if without and not settings.val:
        _refuse(routes)


def check_selecting(routes: Sequence[Route], rounds: Rounds) -> None:
    """Refuse routes that have candidates, where a round has no rows to choose among them.

    Raises
    ------
    RouteError
    """
    if any(not len(one.select) for one in rounds.every):
        _refuse(routes)


def divided(
    table: ImageTable, settings: CompareSettings, usable: np.ndarray, copies: Copies | None
) -> Split:
    """The split of a comparison; folds of a split file are taken, unless others were asked for.

    Raises
    ------
    SplitError
        As `featpipe.split.split_rows`.
    """
    rows = settings.rows
    if settings.split not in ("auto", "given", "random"):
        folds = load_split(settings.split, table, usable).folds
        usual = settings.folds == CompareSettings.folds and settings.repeats == 1
        if folds and (usual or settings.folds * settings.repeats == len(folds)):
            rows = replace(rows, folds=0, repeats=1)
    return split_rows(table, rows, usable, copies=copies)


def _refuse(routes: Sequence[Route]) -> None:
    for route in routes:
        if route.count > 1:
            raise RouteError(
                f"{route.name} has {route.count} candidates, and no rows to choose among them: "
                "give --val above 0, or a split with validation rows."
            )
