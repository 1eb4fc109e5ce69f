"""Routes from images to a classifier, as they are written and named."""

import itertools
import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featpipe.backbones import DEFAULT_SOURCE, Backbone, parse_backbone
from featpipe.errors import FeatpipeError, RouteError
from featpipe.registry import no_such
from featpipe.route import OF_SCRATCH
from featpipe.route import Route as Route  # its readers know both from here
from featpipe.route import checked as checked

OF_FEATURES = ("weights", "pool", "input_size", "dtype", "views", "augment")
ANYWHERE = ("name", "seed", "sweep")
OF_HEAD = ("options", *OF_FEATURES)
KEYS = {
    "scratch": ("scratch", *ANYWHERE, *OF_SCRATCH),
    "pixels": ("pixels", *ANYWHERE, *OF_HEAD),
    "backbone": ("backbone", "head", "layer", "cut", *ANYWHERE, *OF_HEAD),
}
SEVERAL = ("scratch", "pixels", "backbone", "head", "layer")  # each value makes a route
TEXTS = (*SEVERAL, "name", "cut", "weights", "pool", "augment", "dtype")
EXAMPLE = (
    'backbone = "mobilenet_v2" and head = "logistic", pixels = "logistic" or scratch = "small"'
)
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*route[ \t]*\]\]", re.MULTILINE)


def read_routes(path: str | Path) -> list[Route]:
    """The routes of a TOML file: a table ``[[route]]`` each.

    A route has ``scratch`` (a network's name), ``pixels`` (a head's) or ``backbone``, with
    ``head``, ``layer`` or ``cut``; ``options`` of the head, ``sweep``, ``name``, ``seed``, and what
    `ScratchSettings` or `ExtractSettings` have. A list of backbones, layers or heads makes a route
    of each.

    Raises
    ------
    RouteError
        If it cannot be read, or a route is not described as it must be; the message names its
        line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise RouteError(f"{path} cannot be read: {error}.") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RouteError(f"{path} is no TOML: {error}.") from error
    for name in document:
        if name != "route":
            raise RouteError(f"{path}: {no_such('table', name, ['route'])} Write [[route]].")
    tables = document.get("route", [])
    if not tables or not isinstance(tables, list):
        raise RouteError(f"{path} has no [[route]]. Give each a table, with {EXAMPLE}.")
    lines = [text.count("\n", 0, found.start()) + 1 for found in _HEADER.finditer(text)]
    routes: list[Route] = []
    for number, table in enumerate(tables):
        line = f", line {lines[number]}" if len(lines) == len(tables) else ""
        routes += make_routes(table, f"{path}{line}, route {number + 1}")
    return routes


def parse_route(text: str) -> list[Route]:
    """Routes of one line: ``backbone=mobilenet_v2 head=logistic,knn sweep.C=0.1,1,10``.

    Raises
    ------
    RouteError
        As `read_routes`.
    """
    where, table = f"--route {text!r}", dict[str, Any]()
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise RouteError(f"{where} cannot be read: {error}.") from error
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise RouteError(f"{where} has {part!r}; write NAME=VALUE, such as head=logistic.")
        outer, dot, inner = name.replace("-", "_").partition(".")
        inside = table.setdefault(outer, {}) if dot else table
        if not isinstance(inside, dict) or (inner or outer) in inside:
            raise RouteError(f"{where} has {name} twice.")
        if outer == "sweep" or outer == "widths":
            inside[inner or outer] = _values(value)
        elif not dot and outer in TEXTS:
            several = outer in SEVERAL and "," in value
            inside[outer] = value.split(",") if several else value
        else:
            inside[inner or outer] = _value(value)
    return make_routes(table, where)


def make_routes(table: Any, where: str) -> list[Route]:
    """The routes that a table describes: one for each of several backbones, layers and heads.

    Parameters
    ----------
    table : dict
    where : str
        How messages begin: where it stands.
    """
    if not isinstance(table, dict):
        raise RouteError(f"{where} is {table!r}; give it a table, with {EXAMPLE}.")
    named = f" ({table['name']})" if isinstance(table.get("name"), str) else ""
    where += named
    begins = [key for key in KEYS if key in table]
    if len(begins) != 1:
        has = " and ".join(begins) if begins else "none of scratch, pixels and backbone"
        raise RouteError(f"{where} has {has}; it needs one of them: {EXAMPLE}.")
    known = KEYS[begins[0]]
    for key in table:
        if key not in known:
            raise RouteError(f"{where}: {no_such(f'key of a {begins[0]} route', key, known)}")
    several = {
        key: table[key] for key in SEVERAL if isinstance(table.get(key), list) and table[key]
    }
    if len(several) and "name" in table and any(len(some) > 1 for some in several.values()):
        raise RouteError(
            f"{where} is several routes, of {' and '.join(several)}, and has one name: leave the "
            "name out, or describe each by itself."
        )
    made = []
    for values in itertools.product(*several.values()):
        one = {**table, **dict(zip(several, values, strict=True))}
        try:
            made.append(checked(_route(one)))
        except (FeatpipeError, TypeError) as error:
            raise RouteError(f"{where}: {error}") from error
    return made


def _route(table: dict[str, Any]) -> Route:
    for key, word in (("name", str), ("seed", int), ("options", dict), ("sweep", dict)):
        if type(table.get(key, word())) is not word:
            raise RouteError(f"{key} is {table[key]!r}, which is no {_WORDS[word]}.")
    sweep = {
        name: tuple(_frozen(value) for value in values) if isinstance(values, list) else ()
        for name, values in table.get("sweep", {}).items()
    }
    for name, values in sweep.items():
        if not values:
            raise RouteError(f"the sweep of {name} has no values: write {name} = [0.1, 1].")
    common: dict[str, Any] = {"sweep": sweep, "seed": table.get("seed", 0)}
    common["name"] = table.get("name", "")
    if "scratch" in table:
        options = {key: _frozen(table[key]) for key in OF_SCRATCH if key in table}
        return Route(kind="scratch", options={"network": table["scratch"], **options}, **common)
    common["extract"] = {key: table[key] for key in OF_FEATURES if key in table}
    options = {name: _frozen(value) for name, value in table.get("options", {}).items()}
    if "pixels" in table:
        head = table["pixels"]
        return Route(kind="pixels", backbone="pixels", head=head, options=options, **common)
    kind, layer, head = "head", table.get("layer"), table.get("head", "linear")
    if "cut" in table:
        if layer or table.get("head", "tail") != "tail":
            raise RouteError(
                "cut is for fine-tuning what lies behind it: leave layer and head out."
            )
        kind, layer, head = "finetune", table["cut"], "tail"
        options = {"train": "all", **options}
        common["extract"] = {"dtype": "float16", **common["extract"], "pool": "flatten"}
    elif head == "tail":
        kind = "tail"
    return Route(
        kind=kind, backbone=table["backbone"], layer=layer, head=head, options=options, **common
    )


_WORDS = {str: "text", int: "whole number", dict: "table"}


def named(routes: Sequence[Route], loaded: Mapping[str, Backbone] | None = None) -> list[Route]:
    """The routes with a unique, readable name each.

    Parameters
    ----------
    routes : sequence of Route
        A name that is given stays.
    loaded : dict of str to Backbone
        Those that are not loaded by their name.

    Raises
    ------
    RouteError
        If two have one name, or are the same.
    """
    seen: dict[str, Route] = {}
    for route in routes:
        key = json.dumps(route.decides(), sort_keys=True, default=str)
        if key in seen:
            raise RouteError(
                f"Two routes are the same: {_titled(route, loaded, 1)}. Leave one of them out, or "
                "give one another seed."
            )
        seen[key] = route
    names = [route.name for route in routes]
    for detail in range(3):
        counts = Counter(names)
        for number, route in enumerate(routes):
            if not route.name and (detail == 0 or counts[names[number]] > 1):
                names[number] = _titled(route, loaded, detail)
    short = list(names)
    for number, route in enumerate(routes):
        alike = [one for one, name in zip(routes, short, strict=True) if name == short[number]]
        if not route.name and len(alike) > 1:
            names[number] += _apart(route, alike)
    for name, count in Counter(names).items():
        if count > 1:
            raise RouteError(f"{count} routes are called {name!r}: give each a name of its own.")
    return [replace(route, name=name) for route, name in zip(routes, names, strict=True)]


def _titled(route: Route, loaded: Mapping[str, Backbone] | None, detail: int) -> str:
    """What a route is called, the more in detail the more others are called the same."""
    if route.kind == "scratch":
        network = route.options["network"]
        return "CNN from scratch" if network == "two-layer" else f"{network} from scratch"
    title = _model(route, loaded, whole=detail >= 2)
    if route.kind == "finetune":
        return f"{title} fine-tuned from {route.layer}"
    layer = f" {route.layer}" if detail and route.layer else ""
    return f"{title}{layer} + {route.head}"


def _apart(route: Route, alike: Sequence[Route]) -> str:
    """In what a route differs from others of its name."""
    told = _details(route)
    others = [_details(one) for one in alike]
    shown = [text for key, text in told.items() if any(one.get(key) != text for one in others)]
    return f" ({', '.join(shown)})" if shown else ""


def _details(route: Route) -> dict[str, str]:
    """Everything that is set in a route, in words, by what it is."""
    set_ = {**route.extract, **route.options}
    told = {name: f"{name.replace('_', ' ')} {_shown(value)}" for name, value in set_.items()}
    told |= {name: f"{name} of {_shown(values)}" for name, values in route.sweep.items()}
    return told | ({"seed": f"seed {route.seed}"} if route.seed else {})


def _model(route: Route, loaded: Mapping[str, Backbone] | None, whole: bool) -> str:
    assert route.backbone is not None
    if loaded and route.backbone in loaded:
        return str(loaded[route.backbone]) if whole else loaded[route.backbone].title
    source, model, weights = parse_backbone(route.backbone)
    prefix = "" if source in (DEFAULT_SOURCE, model) else f"{source}:"
    weights = weights or route.extract.get("weights")
    if weights == "random":
        return f"{prefix}{model} (random weights)"
    return f"{prefix}{model}" + (f"@{weights}" if whole and weights else "")


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _value(text: str) -> Any:
    """A value that is no JSON is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _values(text: str) -> list[Any]:
    """Values between commas."""
    try:
        whole: list[Any] = json.loads(f"[{text}]")
    except ValueError:
        return [_value(part.strip()) for part in text.split(",") if part.strip()]
    return whole
