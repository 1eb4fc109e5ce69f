"""A route from images to a classifier, and what is refused of one before it is run."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from datetime import time as clock
from typing import Any

from featpipe.backbones import DEFAULT_SOURCE, parse_backbone
from featpipe.cnn import Architecture, check_name, own_size
from featpipe.errors import RouteError
from featpipe.heads import make_head
from featpipe.registry import load_plugin, no_such
from featpipe.settings import ExtractSettings, ScratchSettings

NETWORKS = ("tail", "finetune", "scratch")  # kinds that train a network, a fold at a time
OF_SCRATCH = tuple(one.name for one in fields(ScratchSettings) if one.name != "network")
LONGEST = 200  # characters of a name
PLAIN = ("pixels", "pixels:pixels")
EVERY = 100  # candidates; of more, each value is tried once, and not each combination


@dataclass(frozen=True)
class Route:
    """One way from images to a classifier.

    Attributes
    ----------
    name : str
        Unique in a comparison.
    kind : str
        ``head``, ``pixels``, ``tail``, ``finetune`` or ``scratch``.
    backbone : str or None
        ``[source:]name[@weights]``.
    layer : str or None
        None: the penultimate features. Of fine-tuning, the last layer that stays as it is.
    head : str or None
    options : dict
        Of the head, or of the network trained from scratch.
    sweep : dict of str to tuple
        Values of options among which validation rows choose; every combination is a candidate.
    extract : dict
        Of `ExtractSettings`, what this route's features are made with.
    seed : int
        Added to the comparison's.
    """

    name: str
    kind: str
    backbone: str | None = None
    layer: str | None = None
    head: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    extract: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The options of each candidate: every combination of the sweep."""
        combinations = itertools.product(*self.sweep.values())
        return [
            {**self.options, **dict(zip(self.sweep, values, strict=True))}
            for values in combinations
        ]

    @property
    def count(self) -> int:
        """Of the candidates, which may be more than could be listed."""
        return math.prod(map(len, self.sweep.values()))

    @property
    def trains_network(self) -> bool:
        """Whether each fold is a training of minutes rather than of seconds."""
        return self.kind in NETWORKS

    def scratch(self, options: Mapping[str, Any]) -> ScratchSettings:
        """The settings of a candidate, of a network from scratch."""
        return ScratchSettings(**options)

    def decides(self) -> dict[str, Any]:
        """All but its name, as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


def checked(route: Route) -> Route:
    """The route, if all is right with it that can be known without its weights.

    Raises
    ------
    FeatpipeError
        If an option, a layer's head or a network is not what there is.
    """
    if not 0 <= route.seed < 2**31:
        raise RouteError(f"seed is {route.seed}; it must be from 0 to {2**31 - 1}.")
    for key in ("backbone", "layer", "head"):
        value = getattr(route, key)
        if not isinstance(value, str | None):
            raise RouteError(f"{key} is {value!r}, which is no text.")
        if value is not None and not value.strip():
            raise RouteError(
                f"{'cut' if route.kind == 'finetune' and key == 'layer' else key} is "
                "empty: name one, or leave it out."
            )
    if route.name and (not route.name.strip() or len(route.name) > LONGEST):
        raise RouteError(
            f"name is {route.name[:40]!r}, of {len(route.name):,} characters; it must "
            f"have something to read, and at most {LONGEST}."
        )
    if route.kind == "finetune" and str(route.backbone).partition("@")[0] in PLAIN:
        raise RouteError("pixels have no layer to cut behind: name a network as the backbone.")
    for name, value in [*route.options.items(), *route.sweep.items(), *route.extract.items()]:
        _check_value(name, value)
    for name, values in route.sweep.items():
        if len({one if type(one) in (int, float) else repr(one) for one in values}) < len(values):
            raise RouteError(f"the sweep of {name} has a value twice: leave it out once.")
    if route.kind == "scratch":
        for name in route.sweep:
            if name not in OF_SCRATCH:
                raise RouteError(no_such("setting of a network from scratch", name, OF_SCRATCH))
        if "input_size" in route.sweep:
            raise RouteError("input_size cannot be swept: describe a route for each size.")
        check_name(str(route.options["network"]))
        for options in _tried(route):
            settings = route.scratch(options)
            widths = settings.widths
            if not isinstance(widths, tuple) or not all(type(one) is int for one in widths):
                raise RouteError(f"widths are {widths!r}; give whole numbers: widths = [16, 32].")
            size = settings.input_size or own_size(settings.network)
            if settings.network == "small" and not widths:
                widths = (32, 64, 128, 256)
            Architecture(settings.network, 2, size, widths, settings.dropout)
        return route
    ExtractSettings(**route.extract)
    assert route.head is not None
    for options in _tried(route):
        make_head(route.head, dict(options)).validate_options()
    assert route.backbone is not None
    source, name, _ = parse_backbone(route.backbone)
    known = load_plugin("backbones", source).names()
    if known and name not in known and source == DEFAULT_SOURCE:
        raise RouteError(no_such("backbone", name, known))
    return route


def _tried(route: Route) -> list[dict[str, Any]]:
    """Candidates that have every value of the sweep; all of them, unless they are many."""
    if route.count <= EVERY:
        return route.candidates
    first = {name: values[0] for name, values in route.sweep.items()}
    return [
        {**route.options, **first, name: value}
        for name, values in route.sweep.items()
        for value in values
    ]


def _check_value(name: str, value: Any) -> None:
    """Refuse what no option can be: numbers that are not finite, and dates."""
    if isinstance(value, tuple | list):
        for one in value:
            _check_value(name, one)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RouteError(f"{name} is {value}; it must be finite.")
    elif isinstance(value, date | clock):
        raise RouteError(f"{name} is {value}, which is a {type(value).__name__}.")
