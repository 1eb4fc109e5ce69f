"""Proving a feature cache: its checksums, its images, and a sample computed again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.backbones import Backbone
from featpipe.cache import FeatureCache
from featpipe.device import available_cores
from featpipe.errors import BackboneError, FeatpipeError, ImagesError
from featpipe.extractor import rebuild
from featpipe.fidelity import Fidelity
from featpipe.images import ImageSource, open_images
from featpipe.loading import scan
from featpipe.originals import named_images
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.table import Status

Progress = Callable[[int, int], None]
# Largest difference, as a share of the row's largest value, that another machine, batch or
# version of a library may make; half a unit of the stored type is added.
MOST_ERROR = 0.1  # that a file may claim for its own shortcuts
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass(frozen=True)
class BadRow:
    """A row that is not what it says."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes
    ----------
    path : str
    rows : int
    table : dict
        What is damaged beside the features, such as ``labels``, and how.
    bad : tuple of BadRow
        In order of their number; a row may have several reasons, joined in one.
    images_checked, images_absent, images_new : int
        Images whose bytes were digested, that could not be read, and that are no row yet.
    sampled : int
        Rows that were computed again.
    largest_difference : float or None
        Of the sample, as a share of each row's largest value; None without a sample.
    tolerance : float or None
        What it was compared with.
    notes : tuple of str
        What was not checked, and why.
    """

    path: str
    rows: int
    table: dict[str, str]
    bad: tuple[BadRow, ...]
    images_checked: int
    images_absent: int
    images_new: int
    sampled: int
    largest_difference: float | None
    tolerance: float | None
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing bad was found."""
        return not self.bad and not self.table


def verify(
    path: str | Path,
    images: str | Path | ImageSource | None = None,
    sample: int = 64,
    seed: int = 0,
    settings: ExtractSettings | None = None,
    image_settings: ImageSettings | None = None,
    backbone: Backbone | None = None,
    on_progress: Progress | None = None,
) -> Verification:
    """Read all of a cache, compare it with its images, and compute some of its rows again.

    Parameters
    ----------
    path : str or Path
    images : str, Path or ImageSource
        Where the images lie; by default where they lay when the cache was made, seen from
        here or from the cache's folder.
    sample : int
        Rows to compute again, drawn by `seed`; 0 for none.
    settings : ExtractSettings
        ``weights`` (where their file lies now), ``device``, ``batch_size`` and ``workers``.
    image_settings : ImageSettings
        For manifests; by default those of the extraction.
    backbone : Backbone
        The network, if it is loaded already.

    Returns
    -------
    Verification

    Raises
    ------
    CacheDamagedError
        If so much is damaged that it cannot be told which row is which image.
    """
    settings = settings or ExtractSettings()
    with FeatureCache.salvage(path) as cache:
        bad: dict[int, list[str]] = {}
        table = dict(cache.damaged)
        for layer in cache.layers:
            damage = cache.inspect(layer)
            _note(bad, damage.rows, f"{layer} does not match its checksum")
            if damage.outside:
                table[f"features/{layer}"] = "is damaged outside its rows; other readers will stop"
        _note(bad, *_contradictions(cache, bad))
        notes: list[str] = []
        found = _open(cache, images, image_settings, notes)
        absent = new = checked = sampled = 0
        largest = tolerance = None
        if found is not None:
            there = _compare_digests(cache, found, settings, bad)
            absent = int((there < 0).sum())
            checked = len(cache) - absent
            new = len(set(found.table.ids) - set(cache.table.ids))
            candidates = np.flatnonzero(cache.ok & (there >= 0))
            candidates = candidates[~np.isin(candidates, list(bad))]
            drawn = np.random.default_rng(seed).permutation(candidates)[:sample]
            if cache.spec.backbone.startswith("import:"):
                notes.append("No sample was computed again: the features were imported.")
            elif len(drawn):
                try:
                    largest, tolerance = _compute_again(
                        cache, found, np.sort(drawn), there, settings, backbone, bad, on_progress
                    )
                    sampled = len(drawn)
                except FeatpipeError as error:  # its network is not to be had here
                    notes.append(f"No sample was computed again: {error}")
        rows = tuple(
            BadRow(row, cache.table.ids[row], "; ".join(reasons))
            for row, reasons in sorted(bad.items())
        )
        return Verification(
            str(path), len(cache), table, rows, checked, absent, new, sampled, largest,
            tolerance, tuple(notes),
        )  # fmt: skip


def _note(bad: dict[int, list[str]], rows: Iterable[Any], reason: str) -> None:
    for row in rows:
        bad.setdefault(int(row), []).append(reason)


def _contradictions(cache: FeatureCache, bad: dict[int, list[str]]) -> tuple[np.ndarray, str]:
    """Rows whose status says one thing and whose features another."""
    wrong = np.zeros(len(cache), bool)
    sound = np.setdiff1d(np.arange(len(cache)), np.array(list(bad), np.int64))
    for layer in cache.layers:
        for start in range(0, len(sound), 4096):
            rows = sound[start : start + 4096]
            block = cache.features(layer, rows, view=None).reshape(len(rows), -1)
            finite = np.isfinite(block).all(axis=1)
            wrong[rows] |= np.where(cache.ok[rows], ~finite, ~np.isnan(block).all(axis=1))
    return np.flatnonzero(wrong), "its status and its features contradict each other"


def _open(
    cache: FeatureCache,
    images: str | Path | ImageSource | None,
    image_settings: ImageSettings | None,
    notes: list[str],
) -> ImageSource | None:
    """The images: those given, or those that the cache says it was made of."""
    if images is not None:
        return open_images(images, image_settings)
    try:
        return named_images(cache, image_settings)
    except ImagesError as error:
        notes.append(f"They were not looked at. {error}")
        return None


def _compare_digests(
    cache: FeatureCache, source: ImageSource, settings: ExtractSettings, bad: dict[int, list[str]]
) -> np.ndarray:
    """For each row of the cache its image's row in the source; -1 where it is not there."""
    digests, status, _ = scan(source, settings.workers or available_cores())
    row_of = {name: row for row, name in enumerate(source.table.ids)}
    there = np.array([row_of.get(name, -1) for name in cache.table.ids])
    here = np.flatnonzero(there >= 0)
    unread = status[there[here]] != Status.OK
    there[here[unread]] = -1
    here = here[~unread]
    # Rows that could not be read at extraction, or were imported, may have no digest.
    known = cache.digests[here].any(axis=1)
    other = (digests[there[here]] != cache.digests[here]).any(axis=1)
    _note(bad, here[known & other], "its image has changed since")
    unread = np.isin(cache.status[here], (Status.MISSING, Status.UNREADABLE))
    _note(bad, here[unread], "its image could not be read at extraction, and can be now")
    return there


def _compute_again(
    cache: FeatureCache,
    source: ImageSource,
    rows: np.ndarray,
    there: np.ndarray,
    settings: ExtractSettings,
    backbone: Backbone | None,
    bad: dict[int, list[str]],
    on_progress: Progress | None,
) -> tuple[float, float]:
    """Extract some rows anew; return the largest relative difference and the tolerance."""
    spec = cache.spec
    tolerance = max(TOLERANCE[spec.precision], _shortcuts(cache))
    tolerance += float(np.finfo(spec.dtype).eps) / 2
    groups: dict[str, list[str]] = {}  # layers that are pooled alike are computed together
    for layer, pool in spec.layers.items():
        groups.setdefault(pool, []).append(layer)
    largest, done = 0.0, 0
    for layers in groups.values():
        extractor, differences = rebuild(spec, layers, settings, backbone)
        if differences:
            raise BackboneError(
                "what is here is not what made the cache: "
                + "; ".join(differences).replace("requested", "here")
            )
        load = extractor.loader(source, there)
        with extractor.forward:
            for start in range(0, len(rows), extractor.batch_size):
                batch = rows[start : start + extractor.batch_size]
                images = load(batch.tolist())
                usable = np.array([image.status == Status.OK for image in images])
                _note(bad, batch[~usable], "its image cannot be decoded now")
                pixels = [image.pixels for image in images if image.pixels is not None]
                features = extractor.features(np.stack(pixels)) if pixels else {}
                for layer, again in features.items():
                    gap = _difference(cache.features(layer, batch[usable], view=None), again)
                    largest = max(largest, float(gap.max()))
                    reason = f"{layer} computed again differs by more than {tolerance:.2g}"
                    _note(bad, batch[usable][gap > tolerance], reason)
                done += len(batch)
                if on_progress:
                    on_progress(done, len(rows) * len(groups))
    return largest, tolerance


def _shortcuts(cache: FeatureCache) -> float:
    """What two ways may differ by that are each as far from float32 as was measured."""
    measured = Fidelity.from_dict(cache.conditions.get("fidelity"))
    return 0.0 if measured is None else 2 * min(measured.error, MOST_ERROR)


def _difference(stored: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """Largest difference of each row, as a share of its largest value."""
    stored = stored.reshape(len(stored), -1).astype(np.float64)
    computed = computed.reshape(len(computed), -1).astype(np.float64)
    scale = np.maximum(np.abs(computed).max(axis=1), np.finfo(np.float32).tiny)
    gap: np.ndarray = np.abs(stored - computed).max(axis=1) / scale
    return np.where(np.isfinite(gap), gap, np.inf)
