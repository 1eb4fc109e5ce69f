"""A recipe on a backbone, and on images, that it was not written for."""

import re
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from featpipe.backbones import Backbone, parse_backbone
from featpipe.behind import NORMS, divisible
from featpipe.errors import LayerError, SplitError
from featpipe.images import ImageSource
from featpipe.layers import HookedLayers, TracedLayers
from featpipe.recipes import Probe, Recipe, Way
from featpipe.split import row_groups
from featpipe.table import ImageTable


def adapted(way: Way, loaded: Backbone, cut: str | None = None) -> tuple[Way, list[str]]:
    """The same way with layers that this backbone has, and what was changed, for people.

    Parameters
    ----------
    way : Way
    loaded : Backbone
    cut : str
        Where a network that is trained behind a cut is cut, instead of where the way says.

    Raises
    ------
    LayerError
        If the network has no layer that stands for the one that was cut at.
    """
    notes: list[str] = []
    if way.cut and cut:
        extract = replace(way.extract, layer=(cut,))
        way = replace(way, backbone=_written(loaded), extract=extract)
        notes = [f"{loaded.title} is cut at {cut}."]
    elif way.backbone and parse_backbone(way.backbone)[:2] != (loaded.source, loaded.name):
        way, notes = _on_another(way, loaded)
    if isinstance(way.learn, Probe) and way.learn.options.get("train") == "all":
        frozen, why = _norm_here(loaded)
        if frozen is not None and frozen != way.learn.options.get("freeze_norm", False):
            way = way.mended({"learn": {"options": {"freeze_norm": frozen}}})
            notes.append(why)
    return way, notes


def idle(before: Way, after: Way, loaded: Backbone, cut: str | None = None) -> str | None:
    """Why two ways are the same on this backbone, None where they are not.

    What a fault did can be told only where its mending changes what is run.
    """
    if replace(before, learn=after.learn) != after:  # rows and pixels are nothing of a backbone's
        return None
    one, mine = adapted(before, loaded, cut)
    other, theirs = adapted(after, loaded, cut)
    if one != other:
        return None
    of_one_alone = [note for note in (*mine, *theirs) if (note in mine) != (note in theirs)]
    return " ".join(of_one_alone) or f"On {loaded.title} it changes nothing."


def _norm_here(loaded: Backbone) -> tuple[bool | None, str]:
    """Whether batch norm is frozen whatever a way says, and why; None where the way decides."""
    norms = [module for module in loaded.model.modules() if isinstance(module, NORMS)]
    if not norms:
        return False, f"{loaded.title} has no batch norm."
    if loaded.random:
        return False, "Random weights have no statistics to keep: batch norm learns its own."
    if any(map(_is_folded, norms)):
        # In training it would normalise what its convolutions have normalised already: that is
        # no longer the network, and what freezing it then gains is not what the fault costs.
        return True, (
            f"The batch norm of {loaded.title} has been folded into its convolutions, so there are "
            "no statistics that training could spoil: it is frozen in every step."
        )
    return None, ""


def _is_folded(norm: Any) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:  # it keeps no statistics
        return False
    return bool((mean == 0).all() and ((variance - 1).abs() < 1e-3).all())


def _written(loaded: Backbone) -> str:
    """``[source:]name``."""
    return str(loaded).removesuffix(f"@{loaded.weights}")


def _on_another(way: Way, loaded: Backbone) -> tuple[Way, list[str]]:
    notes = [f"{loaded.title} stands in for {way.backbone}."]
    layers = loaded.layers()
    made = replace(way, backbone=_written(loaded))
    wanted = way.extract.layer[0] if way.extract.layer else None
    if way.cut:
        cut = comparable_cut(layers)
        made = replace(made, extract=replace(way.extract, layer=(cut,)))
        notes.append(f"It is cut at {cut}, the last layer of larger maps, instead of {wanted}.")
    elif wanted and not _has(layers, wanted):
        made = replace(made, extract=replace(way.extract, layer=()))
        notes.append(f"It has no layer {wanted}; {layers.default} is cached instead.")
    return made, notes


def comparable_cut(layers: TracedLayers | HookedLayers) -> str:
    """The last layer at which a network can be divided before its maps shrink for the last time.

    What lies behind it is a network's last stage: ``layer3`` of a ResNet.
    """
    if isinstance(layers, HookedLayers):
        raise LayerError(
            "This network cannot be traced, so nobody knows where it may be divided; take another "
            "--backbone."
        )
    maps = {name: shape for name, shape in layers.shapes.items() if len(shape) == 3}
    sides = {name: shape[-1] for name, shape in maps.items() if shape[-1] > 1}
    smallest = min(sides.values(), default=0)
    before = list(takewhile(lambda name: sides[name] > smallest, sides))
    where = [name for name in divisible(layers) if name in before]
    if not where:
        raise LayerError(
            "This network has no maps that shrink on the way, so no layer stands for the one that "
            "the recipe cuts at. Choose one of `featpipe layers` with --cut."
        )
    stages = {layers.resolve(".".join(name.split(".")[:2])): name for name in maps}
    whole = [name for name in where if name in stages]
    return (whole or where)[-1]


def _has(layers: TracedLayers | HookedLayers, name: str) -> bool:
    try:
        layers.resolve(name)
    except LayerError:
        return False
    return True


# ---- images --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which images belong together.

    Attributes
    ----------
    setting : str
        ``group`` of `TrainSettings`.
    of_rows : object array of str, shape (n,), or None
        None where it is not known.
    unknown : str
        Why not, for people.
    """

    setting: str
    of_rows: np.ndarray | None
    unknown: str = ""


def grouping(table: ImageTable, recipe: Recipe, asked: str | None) -> Grouping:
    """The groups of a table: as asked for, else as the recipe finds them, else the table's own.

    Raises
    ------
    SplitError
        If what was asked for does not match every id. The recipe's own images may well be named
        otherwise than these; of them it is only said.
    """
    why = ""
    for setting in [asked] if asked else [recipe.group_by, "auto"]:
        try:
            groups = row_groups(table, setting)
        except SplitError:
            if asked:
                raise
            pattern = re.compile(setting)
            other = [name for name in table.ids if not pattern.search(name)]
            why = (
                f": {len(other)} of {len(table)} files are not named as the recipe's own, such as "
                f"{other[0]!r}"
                if other
                else ": no file's name says it"
            )
            continue
        if groups is not None:
            return Grouping(setting, groups)
    unknown = f"Nothing says which images are of one {recipe.group}{why}"
    if asked == "none":
        unknown = f"Which images are of one {recipe.group} is not heeded (--group none)"
    return Grouping("none", None, f"{unknown}.")


def check_classes(source: ImageSource, recipe: Recipe) -> None:
    """Refuse images that no recipe can learn from, before any of them is read."""
    counts = source.table.class_counts() if source.table.labels is not None else {}
    there = [name for name, count in counts.items() if count]
    if len(there) < 2:
        has = f"one class only, {there[0]}" if there else "no labels"
        raise SplitError(
            f"{recipe.title} tells classes apart, and {source.location} has {has}. Put the images "
            "in one folder a class, or give a table with --label-column."
        )
