"""What a comparison found, as one tree of plain values: ``results.json`` and ``results.csv``.

Shares are in [0, 1], times in seconds, sizes in bytes, intervals 95 %; what is not known is None.
Rows are numbers into `Items`.
"""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featpipe.durable import put, save_json
from featpipe.errors import ResultsError
from featpipe.route_results import RouteResult
from featpipe.typed import read

FORMAT, VERSION = "featpipe-results", 1
JSON, CSV, THUMBNAILS = "results.json", "results.csv", "thumbnails"


@dataclass(frozen=True)
class Images:
    """What was looked at: ``classes`` are images of each, in the order of the labels."""

    location: str
    count: int
    unusable: int
    classes: dict[str, int]


@dataclass(frozen=True)
class Items:
    """A column each, one value an image.

    Attributes
    ----------
    ids : list of str
    labels : list of int
        Numbers of classes; -1 without one.
    groups : list of str or None
        Rows of one group were kept on one side of every split; None without any.
    parts : list of str
        ``train``, ``val``, ``test``, or empty where the image was not used.
    """

    ids: list[str]
    labels: list[int]
    groups: list[str] | None
    parts: list[str]


@dataclass(frozen=True)
class Verdict:
    """The best route, None if all failed, and what there is to say, the first sentence first."""

    best: str | None
    sentences: list[str]


@dataclass(frozen=True)
class Pair:
    """Two images that look like one.

    Attributes
    ----------
    rows : list of int
        Two.
    similarity : float
        Cosine of their features.
    hash_distance : int or None
        Bits in which their perceptual hashes differ.
    across : list of str
        ``split``, ``class``: what they lie on both sides of.
    """

    rows: list[int]
    similarity: float
    hash_distance: int | None = None
    across: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Leaks:
    """Images that are there more than once.

    Attributes
    ----------
    policy : str
        ``group``, ``drop``, ``keep`` or ``off``.
    exact : list of list of int
        Rows of the same bytes.
    near : list of Pair
    groups : int
        That were made of them.
    """

    policy: str
    exact: list[list[int]] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)
    groups: int = 0


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong; ``given`` and ``suggested`` are numbers of classes."""

    row: int
    given: int
    suggested: int
    score: float


@dataclass(frozen=True)
class Map:
    """A point in the plane for each row, None where there are no features."""

    method: str
    of: str
    points: list[tuple[float, float] | None]


@dataclass(frozen=True)
class Results:
    """A comparison, or one route shown like one.

    Attributes
    ----------
    title : str
    created : str
        ISO 8601, UTC.
    images : Images
    design : dict
        How rows were divided and routes were run: ``folds``, ``repeats``, ``seed``, ``test``,
        ``select_budget``, ``budgets``, ``split``, ``rows`` ...
    items : Items
    routes : list of RouteResult
        Best first, failed ones last.
    verdict : Verdict
    thumbnails : dict
        ``folder``, relative to the file: ``NNNNNN.webp`` by row.
    leaks : Leaks or None
    suspects : list of Suspect
    map : Map or None
    machine : dict
    """

    title: str
    created: str
    images: Images
    design: dict[str, Any]
    items: Items
    routes: list[RouteResult]
    verdict: Verdict
    thumbnails: dict[str, Any] | None = None
    leaks: Leaks | None = None
    suspects: list[Suspect] = field(default_factory=list)
    map: Map | None = None
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the labels."""
        return list(self.images.classes)

    @property
    def finished(self) -> list[RouteResult]:
        """Routes that have figures, best first."""
        return [route for route in self.routes if route.finished]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return {"format": FORMAT, "version": VERSION, **plain}

    @classmethod
    def from_dict(cls, document: Any) -> "Results":
        """The inverse of `to_dict`; names that are not known are passed over.

        Raises
        ------
        ResultsError
            If it is something else, of another version, or something in it is missing or of
            another type.
        """
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise ResultsError(
                "These are no results of featpipe. Give the results.json that `featpipe compare` "
                "left in its --out."
            )
        if document.get("version") != VERSION:
            raise ResultsError(
                f"The results have version {document.get('version')!r}; this featpipe reads "
                f"{VERSION}. Use the featpipe that wrote them, or compare again."
            )
        made: Results = read(cls, document)
        return made

    def save(self, folder: str | Path) -> None:
        """Write ``results.json``, and ``results.csv`` with a line a route."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / JSON, self.to_dict())
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(map(_line, self.routes))
        put(folder / CSV, text.getvalue().encode("utf-8", "surrogateescape"))

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read what `save` wrote, given the file or its folder.

        Raises
        ------
        ResultsError
            If there is no such file, or it is damaged or something else.
        """
        path = Path(path)
        path = path / JSON if path.is_dir() else path
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise ResultsError(
                f"There is no {path}. Name the folder that `featpipe compare` filled, or the "
                "results.json in it."
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise ResultsError(f"{path} cannot be read as JSON: {error}.") from error
        try:
            return cls.from_dict(document)
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}") from error


COLUMNS = (
    "route", "kind", "status", "reason", "accuracy", "accuracy_low", "accuracy_high", "scored_on",
    "images", "test_accuracy", "test_low", "test_high", "balanced_accuracy", "log_loss",
    "difference", "difference_low", "difference_high", "p", "sure", "seconds_cold",
    "seconds_warm", "peak_bytes", "parameters", "images_per_second", "candidates",
)  # fmt: skip


def _line(route: RouteResult) -> dict[str, Any]:
    """A route's line of the table."""
    line: dict[str, Any] = {"route": route.name}
    for name in ("kind", "status", "reason", "peak_bytes", "parameters", "candidates"):
        line[name] = getattr(route, name)
    line["images_per_second"] = route.images_per_second
    if route.accuracy:
        low, high = route.accuracy.interval_95 or (None, None)
        line |= {"accuracy": route.accuracy.value, "accuracy_low": low, "accuracy_high": high}
        line |= {"scored_on": route.accuracy.part, "images": route.accuracy.n}
    if route.test:
        low, high = route.test["accuracy_interval_95"]
        line |= {"test_accuracy": route.test["accuracy"], "test_low": low, "test_high": high}
    for name in ("balanced_accuracy", "log_loss"):
        values = getattr(route.folds, name)
        line[name] = sum(values) / len(values) if values else None
    if route.difference:
        low, high = route.difference.interval_95 or (None, None)
        line |= {"difference": route.difference.value, "difference_low": low}
        line |= {"difference_high": high, "p": route.difference.p, "sure": route.difference.sure}
    if route.seconds:
        line |= {"seconds_cold": route.seconds.cold, "seconds_warm": route.seconds.warm}
    return line
