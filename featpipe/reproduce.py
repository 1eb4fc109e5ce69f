"""Recipes run on the user's own images: as published, fault after fault mended, done right."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.durable import save_json
from featpipe.errors import ImagesError
from featpipe.extract import Progress
from featpipe.images import ImageSource, open_images
from featpipe.leakage import Gap
from featpipe.manifest import SUFFIXES, read_columns
from featpipe.recipes import Recipe, Route, load_recipe
from featpipe.rungs import Runner
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.steps import Change, LeftOut, Step, change


@dataclass(frozen=True, eq=False)
class RouteOutcome:
    """A route of a recipe: what was published, and what was found, from the first rung on.

    Attributes
    ----------
    route : Route
    steps : list of Step
        The last is what is done right, unless only the published was asked for or a fault that
        is in force could not be mended.
    gap : Gap or None
        Where a fault leaks groups, and they are known.
    gap_note : str
        Why a gap that was looked for is not there.
    left_out : list of LeftOut
        Faults whose mending was not run.
    """

    route: Route
    steps: list[Step]
    gap: Gap | None
    gap_note: str = ""
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether the last step has none of the faults."""
        return len(self.steps) > 1 and not any(one.in_force for one in self.left_out)

    @property
    def changes(self) -> list[Change]:
        """What each step did after the one before it."""
        return [change(*pair) for pair in pairwise(self.steps)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "route": self.route.name,
            "published": self.route.published.to_dict(),
            "steps": [asdict(step) for step in self.steps],
            "changes": [asdict(one) for one in self.changes],
            "done_right": self.right,
            "left_out": [asdict(one) for one in self.left_out],
            "gap": self.gap.to_dict() if self.gap else None,
            "gap_note": self.gap_note,
        }


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What a recipe came to on some images.

    Attributes
    ----------
    name : str
    recipe : Recipe
    images : str
    classes : dict of str to int
        Images of each.
    groups : int or None
        Patients, source pictures, ...; None where they are not known.
    routes : list of RouteOutcome
    notes : list of str
        What is not known of the images.
    """

    name: str
    recipe: Recipe
    images: str
    classes: dict[str, int]
    groups: int | None
    routes: list[RouteOutcome]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        recipe = self.recipe
        return {
            "recipe": self.name,
            "title": recipe.title,
            "source": recipe.source,
            "images": self.images,
            "classes": self.classes,
            "groups": self.groups,
            "faults": [{"name": one.name, "why": one.why} for one in recipe.faults],
            "assumed": list(recipe.assumed),
            "notes": self.notes,
            "routes": [one.to_dict() for one in self.routes],
        }


def run_recipe(
    name: str,
    images: str | Path | ImageSource,
    out: str | Path,
    backbone: str | None = None,
    as_published: bool = False,
    each_fault: bool = True,
    classes: Sequence[str] = (),
    group: str | None = None,
    cut: str | None = None,
    extract: ExtractSettings | None = None,
    image_settings: ImageSettings | None = None,
    on_progress: Callable[[str], Progress] | None = None,
) -> Reproduction:
    """Run a published example on images: as it was published, and done right.

    What is finished is kept in `out` and not run again; a training that was interrupted goes on.

    Parameters
    ----------
    name : str
        ``malaria``, ``two-flowers``, ``vehicles``, ``five-flowers``, or an installed plug-in's.
    images : str, Path or ImageSource
    out : str or Path
        Folder for the features, and for each rung its ``result.json``, ``split.csv``, pictures
        and classifier.
    backbone : str
        Instead of the published one: ``[source:]name[@weights]``; ``@weights`` alone is the
        published one with these weights.
    as_published : bool
        Only what was published, faults included.
    each_fault : bool
        Also what every fault costs: they are mended one after the other.
    classes : sequence of str
        Use only images of these.
    group : str
        As of `TrainSettings`, instead of the recipe's way to know whose images belong together.
    cut : str
        Layer to cut at, instead of the recipe's.
    extract : ExtractSettings
        ``input_size``, ``seed`` and how to compute (runtime, precision, device, ...) are used.
    image_settings : ImageSettings
        What is set in it, beside what the recipe knows of its tables.
    on_progress : callable
        Given what is being done, returns the `Progress` to report to.

    Raises
    ------
    UnknownNameError
        If there is no such recipe.
    WeightsError
        If the published backbone's weights cannot be had; the message says how to go on.
    SplitError
        If the images have too few classes, or are too few to be divided; before any feature is
        computed.
    SettingsError
        If a cut is asked for where nothing is fine-tuned.
    """
    recipe = load_recipe(name)
    source = open_images(images, _columns(recipe, images, image_settings))
    if classes:
        source = with_classes(source, classes)
    run = Runner(recipe, source, Path(out), backbone, group, cut, extract, on_progress)
    outcomes = []
    plans = [run.plan(route, as_published) for route in recipe.routes]  # all, before any is run
    for route, (ladder, left_out) in zip(recipe.routes, plans, strict=True):
        rungs = list(enumerate(ladder))
        chosen = rungs if each_fault or len(rungs) == 1 else [rungs[0], rungs[-1]]
        steps = [run.step(route, number, rung) for number, rung in chosen]
        leaks = any(fault.leak for fault in recipe.faults_of(route))
        gap, why = (None, "") if as_published or not leaks else run.gap(route, ladder[-1].way)
        outcomes.append(RouteOutcome(route, steps, gap, why, left_out))
    groups = None if run.groups is None else len(set(run.groups[source.table.labelled]))
    counts = source.table.class_counts()
    found = Reproduction(name, recipe, source.location, counts, groups, outcomes, run.notes)
    save_json(run.out / "recipe.json", found.to_dict())
    return found


def with_classes(source: ImageSource, classes: Sequence[str]) -> ImageSource:
    """The images of some classes.

    Raises
    ------
    ImagesError
        If it has none of one of them.
    """
    table = source.table
    unknown = [name for name in classes if name not in table.classes]
    if unknown or table.labels is None:
        known = ", ".join(table.classes[:20]) or "none"
        raise ImagesError(
            f"{source.location} has no class {', '.join(unknown or classes)}; its classes: {known}."
        )
    codes = [table.classes.index(name) for name in classes]
    return source.only(np.flatnonzero(np.isin(table.labels, codes)))


def _columns(
    recipe: Recipe, images: str | Path | ImageSource, given: ImageSettings | None
) -> ImageSettings:
    """The recipe's columns, where a table has them, and what is given."""
    if isinstance(images, ImageSource):
        return ImageSettings()
    settings, path = recipe.images, Path(images)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        there = read_columns(path)
        absent: dict[str, Any] = {
            name: None
            for name, column in asdict(settings).items()
            if name.endswith("_column") and column not in there
        }
        settings = replace(settings, **absent)
    else:
        settings = ImageSettings()
    said = {key: value for key, value in asdict(given or ImageSettings()).items() if value}
    return replace(settings, **said)
