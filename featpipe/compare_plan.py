"""What a comparison would run, how long that takes, and how much disk, before any of it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featpipe.admission import check_images
from featpipe.backbones import Backbone
from featpipe.choice import sample_rows
from featpipe.compare import Stage, passes, settled, simple_routes
from featpipe.device import available_cores, choose_device
from featpipe.errors import FeatpipeError
from featpipe.extractor import Extractor, prepare, ready
from featpipe.heads import build_head
from featpipe.images import ImageSource, open_images
from featpipe.label_budget import budget_rounds
from featpipe.plan import Plan, plan_extraction
from featpipe.route import Route
from featpipe.route_runner import Runner, preprocessing_of
from featpipe.scratch import epoch_seconds, options_of
from featpipe.settings import CompareSettings, ExtractSettings, ImageSettings, ScratchSettings
from featpipe.shared_features import SharedFeatures, Wanted, wanted_by
from featpipe.targets import targets_of
from featpipe.trials import Ground

log = logging.getLogger(__name__)

CALIBRATED = 200  # rows that a head is fitted on to know how long that takes
FEW = 64  # rows of a network's


@dataclass(frozen=True)
class PlannedFeatures:
    """A pass of the images through a frozen network.

    Attributes
    ----------
    backbone : str
    layers : tuple of str
        Empty for the penultimate features.
    images : int
        That have to be computed.
    seconds : float or None
        None if it cannot be told.
    bytes : int
        On disk.
    note : str
        Why it cannot be run; empty if it can.
    """

    backbone: str
    layers: tuple[str, ...]
    images: int
    seconds: float | None
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class PlannedRoute:
    """A route's trainings.

    Attributes
    ----------
    name, kind : str
    trainings : int
        Rounds times candidates, without those that are kept.
    kept : int
        Rounds that are finished.
    candidates : int
    seconds : float or None
        Of a network at most: it may stop early. None if it cannot be told.
    bytes : int
        Of temporary files.
    note : str
    """

    name: str
    kind: str
    trainings: int
    kept: int
    candidates: int
    seconds: float | None
    bytes: int = 0
    note: str = ""


@dataclass(frozen=True)
class ComparisonPlan:
    """What would run.

    Attributes
    ----------
    features : list of PlannedFeatures
    routes : list of PlannedRoute
    rounds : int
        Trainings of each route and candidate.
    select_budget : int
    calibration_seconds : float
        That it took to know.
    """

    features: list[PlannedFeatures]
    routes: list[PlannedRoute]
    rounds: int
    select_budget: int
    calibration_seconds: float

    @property
    def seconds(self) -> float:
        """Of everything that can be told."""
        known = [one.seconds for one in self.features] + [one.seconds for one in self.routes]
        return sum(filter(None, known))

    @property
    def disk_bytes(self) -> int:
        """Kept in the folder."""
        return sum(one.bytes for one in self.features)

    @property
    def temporary_bytes(self) -> int:
        """Of the pixels that networks from scratch are trained on, while they are."""
        return max((one.bytes for one in self.routes), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        sums = ("seconds", "disk_bytes", "temporary_bytes")
        return {**asdict(self), **{name: getattr(self, name) for name in sums}}


def plan_comparison(
    images: str | Path | ImageSource,
    backbones: Sequence[str | Backbone] = (),
    heads: Sequence[str] = ("linear",),
    out: str | Path = "featpipe-compare",
    scratch: bool = True,
    extract: ExtractSettings | None = None,
    settings: CompareSettings | None = None,
    scratch_settings: ScratchSettings | None = None,
    image_settings: ImageSettings | None = None,
    routes: Sequence[Route] = (),
) -> ComparisonPlan:
    """Say what `featpipe.compare.compare_routes` would run; parameters and errors are its own.

    A few images go through each backbone, a few rows through each head, two batches through each
    network from scratch. Nothing is written.
    """
    begun = time.perf_counter()
    extract, settings = extract or ExtractSettings(), settings or CompareSettings()
    loaded = {str(one): one for one in backbones if isinstance(one, Backbone)}
    simple = simple_routes(backbones, heads, scratch, extract, scratch_settings)
    every = settled([*routes, *simple], settings, loaded)
    source = open_images(images, image_settings)
    ground = Ground(source, targets_of(source.table), settings)
    check_images(source.table, every, settings)
    wanted = {route.name: wanted_by(route, extract) for route in every}
    with SharedFeatures(source, Path(out), loaded, read_only=True) as features:
        planned, made = [], dict[str, Extractor | str]()
        for one in passes(wanted, extract):
            some, extractor = _features(source, features, one, loaded)
            planned += some
            if extractor is not None:
                made[one.key] = extractor
        with Runner(ground, Path(out), features, None) as runner:
            stage = Stage(runner, source, settings, every, wanted, extract, look=False)
            found = [_route(stage, route, wanted[route.name], made) for route in every]
    spent = time.perf_counter() - begun
    return ComparisonPlan(
        planned, found, len(stage.rounds.every), settings.select_budget, round(spent, 3)
    )


def _features(
    source: ImageSource,
    features: SharedFeatures,
    one: Wanted,
    loaded: Mapping[str, Backbone],
) -> tuple[list[PlannedFeatures], Extractor | str | None]:
    """What is to be computed of a pass, and what would compute it, or why nothing can."""
    found: list[PlannedFeatures] = []
    extractor: Extractor | None = None
    backbone = loaded.get(one.backbone, one.backbone)
    try:
        for file, layers in features.files(one):
            settings = replace(one.settings, layer=layers)
            plan = plan_extraction(source, backbone, file, settings)
            if file.exists() and not plan.to_compute:
                found.append(PlannedFeatures(one.backbone, layers, 0, 0.0, 0))
                continue
            seconds, extractor = _extraction_seconds(source, backbone, settings, plan)
            size = len(source) * plan.row_bytes
            found.append(PlannedFeatures(one.backbone, layers, plan.to_compute, seconds, size))
    except (FeatpipeError, OSError) as error:
        note = str(error).splitlines()[0]
        return [PlannedFeatures(one.backbone, one.settings.layer, 0, None, 0, note)], note
    if extractor is None:
        features.compute(one)  # all of it is there
    return found, extractor


def _extraction_seconds(
    source: ImageSource, backbone: str | Backbone, settings: ExtractSettings, plan: Plan
) -> tuple[float | None, Extractor]:
    begun = time.perf_counter()
    extractor = ready(prepare(backbone, settings))
    count = extractor.batch_size
    rows = sample_rows(source, extractor.backbone.preprocessing, 2 * count)
    if not rows:
        return None, extractor
    loader = extractor.loader(source)
    decoding = time.perf_counter()
    pictures = [one.pixels for one in loader(rows) if one.pixels is not None]
    decoding = (time.perf_counter() - decoding) / len(rows)
    with extractor.forward:
        first, second = np.stack(pictures[:count]), np.stack(pictures[-count:])
        extractor.features(first)
        forward = time.perf_counter()
        extractor.features(second)
        forward = (time.perf_counter() - forward) / len(second)
    # Images are decoded while others are in the network.
    each = max(decoding / (settings.workers or available_cores()), forward)
    return (time.perf_counter() - begun) + each * plan.to_compute, extractor


def _route(
    stage: Stage,
    route: Route,
    wanted: Wanted | None,
    made: Mapping[str, Extractor | str],
) -> PlannedRoute:
    rounds, runner = stage.rounds, stage.runner
    candidates, every = len(route.candidates), rounds.every
    there = made.get(wanted.key) if wanted else None
    kept, note = 0, there if isinstance(there, str) else ""
    if there is None:
        kept = runner.kept(route, wanted, rounds)
        if not route.trains_network and kept < len(every):
            kept = 0  # heads are fitted in all rounds at once
    missing = len(every) - kept
    trainings = missing * candidates
    if note or not missing:
        seconds = None if note else 0.0
        return PlannedRoute(route.name, route.kind, trainings, kept, candidates, seconds, 0, note)
    rows = float(np.mean([len(one.fit) for one in every])) * trainings
    settings = stage.settings
    if settings.budgets and (settings.network_budgets or not route.trains_network):
        few = budget_rounds(rounds, stage.targets.values, settings.budgets, settings.seed)
        rows += sum(len(one.fit) for some in few.values() for one in some)
    size = 0
    try:
        if route.kind == "scratch":
            size = int(stage.usable.sum()) * int(np.prod(preprocessing_of(route).crop)) * 3
            options = route.scratch(route.candidates[0])
            each = epoch_seconds(options, len(stage.targets.classes), settings.device)
            seconds = each * rows * int(options_of(options)["epochs"])
        else:
            seconds = _head_seconds(stage, route, wanted, there) * rows
    except (FeatpipeError, RuntimeError, ValueError) as error:
        note = str(error).splitlines()[0]
        return PlannedRoute(route.name, route.kind, trainings, kept, candidates, None, size, note)
    return PlannedRoute(route.name, route.kind, trainings, kept, candidates, seconds, size)


def _head_seconds(
    stage: Stage, route: Route, wanted: Wanted | None, extractor: Extractor | str | None
) -> float:
    """A row, of fitting a head on random features of the right shape."""
    assert wanted is not None
    assert route.head is not None
    ground = stage.runner.ground
    settings, options = ground.training(route), ground.candidates(route)[0]
    if isinstance(extractor, Extractor):
        spec, shapes = extractor.spec, extractor.shapes
        layer = next(iter(shapes))
        if route.layer:
            layer = next(name for name in shapes if name.startswith(route.layer))
        shape = shapes[layer]
    else:
        cache = stage.runner.features.of(wanted)
        spec, layer = cache.spec, cache.layer(route.layer)
        shape = cache.layers[layer]
    network = route.trains_network
    own = {"trust_code": True} if network else {}
    head = build_head(route.head, settings, {**own, **options}).on(spec, layer, shape)
    epochs = int(head.epochs) if network else 1
    if network:
        head.set_params(epochs=1)
    one = stage.rounds.ranking[0]
    classes = stage.targets.values[one.fit]
    order = np.random.default_rng(0).permutation(len(classes))
    rows = order[: FEW if network else CALIBRATED]
    y = classes[rows]
    if len(np.unique(y)) < 2:
        y = np.arange(len(y)) % 2
    X = np.random.default_rng(0).standard_normal((len(y), int(np.prod(shape))), np.float32)
    if network:  # what is loaded and built once is not to be counted for every row
        head.fit(X[:4], np.arange(min(4, len(X))) % 2)
    torch.manual_seed(0)
    begun = time.perf_counter()
    head.fit(X, y)
    spent = time.perf_counter() - begun
    log.debug("%s: %d rows of %s in %.3f s on %s.", route.name, len(y), shape, spent,
              choose_device(settings.device))  # fmt: skip
    return spent / len(y) * epochs
