"""Recipes: published examples as they were done, and done right. Each file here is one.

A plug-in has one `Recipe`, called ``RECIPE``: what the example did in featpipe's own settings, and
its faults, each with the change that mends it. Done right is what was published with all of its
faults mended, so that nothing is written twice; `featpipe.reproduce` runs both.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from featpipe.calibration import wilson
from featpipe.decode import Preprocessing
from featpipe.registry import load_plugin, plugin_names
from featpipe.settings import ExtractSettings, ImageSettings, ScratchSettings, TrainSettings

RIGHT = "done right"
AS_PUBLISHED = "as published"


@dataclass(frozen=True)
class Pixels:
    """What is done to pictures where that is not what the backbone's weights ask for.

    Attributes
    ----------
    whole : bool
        Resized to the network's input whatever their shape; nothing is cropped away.
    normalised : bool
        By the mean and deviation that the weights were trained with; if not, only scaled to
        [0, 1].
    transposed : bool
        From height x width x channel to channel x height x width. If not, the values are read in
        the order in which they lie, and the picture is scrambled.
    """

    whole: bool = False
    normalised: bool = True
    transposed: bool = True

    def applied(self, own: Preprocessing) -> Preprocessing:
        """The preprocessing of some weights, changed to this."""
        changed = replace(own, reshaped=not self.transposed)
        if self.whole:
            changed = replace(changed, resize=own.crop)
        if not self.normalised:
            changed = replace(changed, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return changed


@dataclass(frozen=True)
class Probe:
    """A head on features of a frozen backbone; the head `tail` is what is behind their layer.

    Attributes
    ----------
    head : str
    options : dict
        The head's parameters, where they are not its defaults.
    sweep : dict of str to sequence
        Values among which validation rows choose.
    """

    head: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """From images to a scored classifier.

    Attributes
    ----------
    learn : Probe or ScratchSettings
        A head on features, or a CNN from pixels.
    train : TrainSettings
        How rows are divided. Where there are validation rows, they select the epoch.
    backbone : str or None
        None for a CNN from scratch.
    extract : ExtractSettings
        Layer and views of the features.
    pixels : Pixels
    stratified : bool
        Whether each part has its share of each class; rows are drawn blindly otherwise.
    """

    learn: Probe | ScratchSettings
    train: TrainSettings
    backbone: str | None = None
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    pixels: Pixels = field(default_factory=Pixels)
    stratified: bool = True

    @property
    def cut(self) -> str | None:
        """The layer behind which all of the backbone is trained."""
        probes = isinstance(self.learn, Probe) and self.learn.options.get("train") == "all"
        return self.extract.layer[0] if probes else None

    @property
    def scored(self) -> str:
        """The part of the rows whose accuracy is reported."""
        if self.train.folds:
            return "folds"
        return "test" if self.train.test else "val"

    def mended(self, changes: Mapping[str, Any]) -> "Way":
        """The same with some things changed: values by name, or by name within one of its parts."""
        made: Way = _changed(self, changes)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, all of them."""
        return {**asdict(self), "learn": {"kind": kind_of(self.learn), **asdict(self.learn)}}

    def described(self) -> dict[str, str]:
        """Each part in words, without what is featpipe's default anyway."""
        told = {
            "backbone": self.backbone or "none",
            "features": _told(self.extract),
            "pixels": _told(self.pixels),
            "rows": _told(self.train) + ("" if self.stratified else ", drawn without stratifying"),
            kind_of(self.learn): _told(self.learn, whole=True),
        }
        if not self.backbone:
            del told["features"]
        return {name: text for name, text in told.items() if text}


@dataclass(frozen=True)
class Fault:
    """Something that an example did and should not have done.

    Attributes
    ----------
    name : str
    why : str
        Why it matters, in a sentence.
    mended : str
        What is done instead, in a few words.
    mend : dict
        What `Way.mended` changes.
    routes : tuple of str
        The routes that have it; all of them if empty.
    leak : bool
        Whether rows of one group lie on both sides of the split because of it.
    """

    name: str
    why: str
    mended: str
    mend: Mapping[str, Any]
    routes: tuple[str, ...] = ()
    leak: bool = False


@dataclass(frozen=True)
class Published:
    """What was published.

    Attributes
    ----------
    accuracy : float or None
        A share; None where the example gives no figure.
    images : int or None
        Scored, where that is known.
    part : str
        What the example calls the rows it scored.
    train_accuracy : float or None
    """

    accuracy: float | None = None
    images: int | None = None
    part: str = "validation"
    train_accuracy: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the accuracy."""
        if self.accuracy is None or self.images is None:
            return None
        return wilson(round(self.accuracy * self.images), self.images)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "interval_95": list(self.interval) if self.interval else None}


@dataclass(frozen=True)
class Route:
    """One classifier of an example: what it is called, what was published of it, and how."""

    name: str
    published: Published
    way: Way


@dataclass(frozen=True)
class Rung:
    """A step from what was published to what is right.

    Attributes
    ----------
    name : str
    fault : Fault or None
        What this step mends; None for what was published.
    way : Way
    """

    name: str
    fault: Fault | None
    way: Way


@dataclass(frozen=True)
class Recipe:
    """A published example.

    Attributes
    ----------
    title : str
    data : str
        What its images were, and how they lay.
    source : str
        Where its description and its figures come from.
    routes : tuple of Route
    faults : tuple of Fault
        In the order in which they are mended.
    assumed : tuple of str
        What the description leaves open, and what is done here.
    images : ImageSettings
        Columns of a table of such images.
    group : str
        What rows of one group have in common: ``patient``.
    group_by : str
        The setting ``group`` that finds it.
    grid : bool
        Whether pictures with their predictions are drawn.
    """

    title: str
    data: str
    source: str
    routes: tuple[Route, ...]
    faults: tuple[Fault, ...]
    assumed: tuple[str, ...] = ()
    images: ImageSettings = field(default_factory=ImageSettings)
    group: str = "group"
    group_by: str = "auto"
    grid: bool = False

    def ladder(self, route: Route, without: Collection[str] = ()) -> list[Rung]:
        """What was published, then one fault after the other mended; the last is done right.

        Faults `without` are left as they are: some cannot be mended on some images.
        """
        rungs = [Rung(AS_PUBLISHED, None, route.way)]
        for fault in self.faults_of(route):
            if fault.name in without:
                continue
            rungs.append(Rung(fault.mended, fault, rungs[-1].way.mended(fault.mend)))
        return rungs

    def faults_of(self, route: Route) -> Iterator[Fault]:
        """Those that a route has."""
        return (one for one in self.faults if not one.routes or route.name in one.routes)


def recipe_names() -> list[str]:
    """Names of all recipes."""
    return plugin_names("recipes")


def load_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises
    ------
    UnknownNameError
        If there is none; the message lists the names.
    """
    recipe: Recipe = load_plugin("recipes", name).RECIPE
    return recipe


def kind_of(learn: Probe | ScratchSettings) -> str:
    """``head`` or ``scratch``."""
    return "head" if isinstance(learn, Probe) else "scratch"


def _changed(one: Any, changes: Mapping[str, Any]) -> Any:
    values = {}
    for name, change in changes.items():
        old = getattr(one, name)
        if isinstance(change, Mapping) and is_dataclass(old):
            values[name] = _changed(old, change)
        elif isinstance(change, Mapping) and isinstance(old, Mapping):
            values[name] = {**old, **change}
        else:
            values[name] = change
    return replace(one, **values)


def _told(one: Any, whole: bool = False) -> str:
    """The fields of a dataclass that are not its defaults, or all of them."""
    said = []
    for item in fields(one):
        value = getattr(one, item.name)
        usual = item.default if item.default_factory is MISSING else item.default_factory()
        if isinstance(value, Mapping):
            said += [f"{name.replace('_', ' ')} {_text(inner)}" for name, inner in value.items()]
        elif value != usual or (whole and value not in (None, ())):
            said.append(f"{item.name.replace('_', ' ')} {_text(value)}")
    return ", ".join(said)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return " ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
