"""Transfer learning against a CNN from scratch: same rows, same seeds, same clock."""

import csv
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.backbones import DEFAULT_SOURCE, Backbone, parse_backbone
from featpipe.cache import FeatureCache
from featpipe.checkpoint import checkpointing
from featpipe.durable import save_json
from featpipe.errors import SettingsError
from featpipe.extract import Progress, extract_features
from featpipe.heads import build_head
from featpipe.images import ImageSource, open_images
from featpipe.result import Result
from featpipe.scratch import options_of, train_from_scratch
from featpipe.settings import ExtractSettings, ImageSettings, ScratchSettings, TrainSettings
from featpipe.split import Split, split_rows
from featpipe.train import fit_and_score

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Route:
    """One way from images to a classifier, and what it came to.

    Attributes
    ----------
    name : str
        ``vgg16 + linear``.
    result : Result
    seconds_cold : float
        From image files to scored classifier: extraction or decoding, then training. Where
        features were already cached, the seconds recorded when they were extracted.
    seconds_warm : float
        Training and scoring alone.
    """

    name: str
    result: Result
    seconds_cold: float
    seconds_warm: float

    def row(self) -> dict[str, Any]:
        """The route's line of the table, as plain JSON values."""
        scores = self.result.scores
        row: dict[str, Any] = {"route": self.name}
        for part in ("train", "val", "test"):
            row[f"{part}_accuracy"] = scores[part].accuracy if part in scores else None
        best = scores.get("test") or scores.get("val")
        row["interval_95"] = list(best.interval) if best else None
        row["seconds_cold"] = round(self.seconds_cold, 3)
        row["seconds_warm"] = round(self.seconds_warm, 3)
        row["parameters"] = self.result.parameters
        return row


@dataclass(frozen=True, eq=False)
class Comparison:
    """All routes over one split.

    Attributes
    ----------
    images : str
    split : Split
    classes : dict of str to int
        Images of each class.
    routes : list of Route
        Best first: by test accuracy where there are test rows, else by validation accuracy.
    caches : dict of str to Path
        The feature cache of each backbone, as it was written.
    """

    images: str
    split: Split
    classes: dict[str, int]
    routes: list[Route]
    caches: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "images": self.images,
            "classes": self.classes,
            "split": {
                "origin": self.split.origin,
                **{name: len(rows) for name, rows in self.split.parts().items()},
            },
            "routes": [{**route.row(), **route.result.to_dict()} for route in self.routes],
        }

    def save(self, folder: str | Path) -> None:
        """Write ``compare.json`` and ``compare.csv``."""
        folder = Path(folder)
        save_json(folder / "compare.json", self.to_dict())
        with (folder / "compare.csv").open(
            "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            rows = []
            for route in self.routes:
                row = route.row()
                low, high = row.pop("interval_95") or (None, None)
                rows.append({**row, "interval_95_low": low, "interval_95_high": high})
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def compare_routes(
    images: str | Path | ImageSource,
    backbones: Sequence[str | Backbone],
    heads: Sequence[str] = ("linear",),
    out: str | Path = "featpipe-compare",
    scratch: bool = True,
    extract: ExtractSettings | None = None,
    train: TrainSettings | None = None,
    scratch_settings: ScratchSettings | None = None,
    image_settings: ImageSettings | None = None,
    on_progress: Callable[[str], Progress] | None = None,
) -> Comparison:
    """Compare a CNN from scratch, raw pixels, and every backbone with every head.

    Parameters
    ----------
    images : str, Path or ImageSource
    backbones : sequence of str or Backbone
        ``[source:]name[@weights]``; ``pixels`` always runs along.
    heads : sequence of str
    out : str or Path
        Folder for the feature caches (kept, and used again), ``compare.json`` and
        ``compare.csv``.
    scratch : bool
        Whether to train a CNN from pixels.
    extract, train, scratch_settings, image_settings
        Settings of each stage. ``extract.layer`` and ``extract.pool`` hold for every
        backbone but ``pixels``.
    on_progress : callable
        Given a route's name, returns the `Progress` to report to.

    Returns
    -------
    Comparison
        Every route saw the same training, validation and test rows: those that every route
        can use. Interrupted while the CNN was trained, the next call goes on with it; its
        seconds are then of the last call alone, and its conditions say so.
    """
    extract, train = extract or ExtractSettings(), train or TrainSettings()
    if train.folds or train.leave_one_group_out or train.separator:
        raise SettingsError(
            "compare takes one split and one class an image: no folds, no separator."
        )
    source = open_images(images, image_settings)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    with ExitStack() as stack:
        caches: dict[str, FeatureCache] = {}
        for backbone in [*backbones, "pixels"]:
            name = str(backbone)
            if name in caches:
                continue
            settings = extract
            if parse_backbone(name)[0] == "pixels":
                settings = replace(extract, layer=(), pool="auto", weights=None, input_size=None)
            files[name] = folder / f"features-{_slug(name)}.h5"
            progress = on_progress(name) if on_progress else None
            cache = extract_features(source, backbone, files[name], settings, on_progress=progress)
            caches[name] = stack.enter_context(cache)
        usable = np.logical_and.reduce([cache.ok for cache in caches.values()])
        split = split_rows(source.table, train, usable)
        routes = _transfer_routes(caches, heads, split, train)
        images = caches["pixels"].digests.tobytes().hex()
    with checkpointing(folder / "unfinished", images) as kept:
        if scratch:
            routes.append(_scratch_route(source, split, train, scratch_settings, on_progress))
    routes.sort(key=_merit, reverse=True)
    comparison = Comparison(source.location, split, source.table.class_counts(), routes, files)
    comparison.save(folder)
    kept.clear()
    return comparison


def _transfer_routes(
    caches: dict[str, FeatureCache], heads: Sequence[str], split: Split, train: TrainSettings
) -> list[Route]:
    routes = []
    for name, title in _titles(caches).items():
        cache = caches[name]
        for head in heads:
            for layer in cache.spec.layers if train.layer is None else [train.layer]:
                log.info("Training %s on %s.", head, title)
                at = f" {layer}" if len(cache.spec.layers) > 1 else ""
                unfitted = build_head(head, train, {})
                _, result = fit_and_score(cache, cache.layer(layer), split, head, unfitted, train)
                cold = float(cache.conditions["seconds"]) + result.seconds
                routes.append(Route(f"{title}{at} + {head}", result, cold, result.seconds))
    return routes


def _titles(caches: dict[str, FeatureCache]) -> dict[str, str]:
    """Short names where they are unambiguous, else with the weights."""
    short = {}
    for name, cache in caches.items():
        source, model, _ = parse_backbone(name)
        prefix = "" if source in (DEFAULT_SOURCE, model) else f"{source}:"
        random = " (random weights)" if cache.spec.random_weights else ""
        short[name] = f"{prefix}{model}{random}"
    several = Counter(short.values())
    return {name: title if several[title] == 1 else name for name, title in short.items()}


def _scratch_route(
    source: ImageSource,
    split: Split,
    train: TrainSettings,
    settings: ScratchSettings | None,
    on_progress: Callable[[str], Progress] | None,
) -> Route:
    settings = settings or ScratchSettings()
    options = options_of(settings)
    two_layer = settings.network == "two-layer"
    name = "CNN from scratch" if two_layer else f"{settings.network} from scratch"
    described = (f"{key.replace('_', ' ')} {value}" for key, value in options.items())
    log.info("Training the CNN from scratch: %s.", ", ".join(described))
    progress = on_progress(name) if on_progress else None

    def report(row: dict[str, float]) -> None:
        if progress:
            progress(int(row["epoch"]), options["epochs"])

    begun = time.perf_counter()
    _, result = train_from_scratch(source, split, settings, train, report)
    return Route(name, result, time.perf_counter() - begun, result.seconds)


def _merit(route: Route) -> float:
    scores = route.result.scores
    return (scores.get("test") or scores.get("val") or scores["train"]).accuracy


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
