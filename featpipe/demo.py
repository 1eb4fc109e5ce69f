"""The demo: handwritten digits, ten labelled images a class, no downloads needed."""

import logging
import time
import urllib.request
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.backbones import load_backbone
from featpipe.backbones.torchvision import weights_file
from featpipe.compare import Comparison, compare_routes
from featpipe.errors import WeightsError
from featpipe.extract import Progress
from featpipe.images import ImageSource, open_images
from featpipe.report.plots import plot_curves, plot_grid
from featpipe.settings import (
    CompareSettings,
    ExtractSettings,
    ScratchSettings,
    TrainSettings,
)
from featpipe.table import ImageTable
from featpipe.train import train_head

log = logging.getLogger(__name__)

BACKBONE = "vgg16"
PER_CLASS = 10
LAYER = "features.16"  # digits are far from ImageNet; its middle layers suit them, and are quick
SIDE = 64
PATIENCE_SECONDS = 20


def run_demo(
    folder: str | Path = "featpipe-demo",
    on_progress: Callable[[str], Progress] | None = None,
) -> Comparison:
    """Write the digits as PNGs, compare the routes, train a classifier, predict a grid.

    Everything is left in `folder`: ``digits/``, the feature caches, ``results.json`` and
    ``.csv``, ``classifier.safetensors``, ``curves.png`` and ``grid.png``.

    Returns
    -------
    Comparison
        Scored on the 1,697 digits that are not used for training.
    """
    folder = Path(folder)
    write_digits(folder / "digits")
    weights = choose_weights()
    if weights == "random":
        log.warning(
            "The pretrained weights of %s are not on this machine and cannot be fetched within "
            "seconds. Seeded random ones stand in: everything runs as it would, but the backbone "
            "has learnt nothing, so its accuracy says nothing about transfer learning.",
            BACKBONE,
        )
    try:
        backbone = load_backbone(BACKBONE, weights, input_size=SIDE)
    except WeightsError:  # the connection was lost after all
        backbone = load_backbone(BACKBONE, "random", input_size=SIDE)
    extract = ExtractSettings(layer=(LAYER,), pool="avg", input_size=SIDE)
    source = open_images(folder / "digits")
    comparison = compare_routes(
        source,
        [backbone],
        ("linear", "sklearn-logistic"),
        folder,
        extract=extract,
        settings=CompareSettings(folds=0, budgets=()),
        scratch_settings=ScratchSettings(input_size=SIDE),
        on_progress=on_progress,
    )
    classifier, result = train_head(comparison.caches[str(backbone)], "linear", TrainSettings())
    classifier.save(folder / "classifier.safetensors")
    result.save(folder / "result.json")
    plot_curves(
        result.curves, folder / "curves.png", f"{backbone.title}, {PER_CLASS} digits a class"
    )
    shown = _every_nth(source, 24)
    predictions = list(classifier.predict(shown, backbone=backbone))
    plot_grid(predictions, classifier.classes, shown, folder / "grid.png", title=backbone.title)
    return comparison


def write_digits(folder: Path) -> None:
    """Write ``train/CLASS/*.png`` (the first ten of each class) and ``test/CLASS/*.png``."""
    digits = open_images("digits")
    assert digits.table.labels is not None
    seen = np.zeros(len(digits.table.classes), int)
    for row, (name, label) in enumerate(zip(digits.table.ids, digits.table.labels, strict=True)):
        seen[label] += 1
        file = folder / ("train" if seen[label] <= PER_CLASS else "test") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(digits.read(row))


def choose_weights(seconds: float = PATIENCE_SECONDS) -> str:
    """``DEFAULT`` if the pretrained weights are at hand or soon would be, else ``random``.

    The speed of the connection is tried for at most two seconds.
    """
    url, file = weights_file(BACKBONE)
    if file.exists():
        return "DEFAULT"
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            size = int(answer.headers["Content-Length"])
            begun, got = time.perf_counter(), 0
            while got < size and time.perf_counter() - begun < 2:
                block = answer.read(1 << 20)
                if not block:
                    break
                got += len(block)
            expected = size / max(got, 1) * (time.perf_counter() - begun)
    except (OSError, ValueError, TypeError):
        return "random"
    return "DEFAULT" if expected <= seconds else "random"


def _every_nth(source: ImageSource, count: int) -> ImageSource:
    """About `count` test rows of a source, evenly spread."""
    table = source.table
    assert table.splits is not None
    assert table.labels is not None
    rows: Any = np.flatnonzero(table.splits == "test")
    rows = np.array(list(islice(rows[:: max(1, len(rows) // count)], count)))
    part = ImageTable(table.ids[rows], table.labels[rows], table.classes)
    return ImageSource(source.location, part, lambda row: source.read(int(rows[row])))
