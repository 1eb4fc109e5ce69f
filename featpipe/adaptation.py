"""A recipe's way on a backbone that it was not written for."""

from dataclasses import replace
from itertools import takewhile

from featpipe.backbones import Backbone
from featpipe.behind import divisible
from featpipe.errors import LayerError
from featpipe.layers import HookedLayers, TracedLayers
from featpipe.recipes import Probe, Way


def adapted(way: Way, loaded: Backbone) -> tuple[Way, list[str]]:
    """The same way with layers that this backbone has, and what was changed, for people.

    Raises
    ------
    LayerError
        If the network has no layer that stands for the one that was cut at.
    """
    notes: list[str] = []
    if way.backbone not in (None, loaded.name):
        way, notes = _on_another(way, loaded)
    if loaded.random and isinstance(way.learn, Probe) and way.learn.options.get("freeze_norm"):
        way = way.mended({"learn": {"options": {"freeze_norm": False}}})
        notes.append("Random weights have no statistics to keep: batch norm learns its own.")
    return way, notes


def _on_another(way: Way, loaded: Backbone) -> tuple[Way, list[str]]:
    notes = [f"{loaded.title} stands in for {way.backbone}."]
    layers = loaded.layers()
    made = replace(way, backbone=loaded.name)
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
