"""Where the lines, bands and marks of a chart lie, in percent of its frame.

Charts are SVG whose places are percentages and whose letters are the page's own: they fill any
width, take the page's colours, and need no script. Series differ in mark and dash, not in colour
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import floor, log10

import numpy as np

COLOURS = MARKS = 8


@dataclass(frozen=True)
class Mark:
    """A value: its place in percent from the left and from the top, and what it says.

    Faint ones are of too little to be taken at their word.
    """

    x: float
    y: float
    text: str
    faint: bool = False


@dataclass(frozen=True)
class Series:
    """A line of values.

    Attributes
    ----------
    name : str
    number : int
        Decides colour, mark and dash.
    marks : list of Mark
    line : str
        Points of a polyline; empty for none.
    band : str
        Points of a polygon, around the line; empty for none.
    spans : list of tuple
        ``x, top, bottom, faint`` of the values' intervals.
    """

    name: str
    number: int
    marks: list[Mark]
    line: str = ""
    band: str = ""
    spans: list[tuple[float, float, float, bool]] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """Series over two axes; ticks are places in percent and texts."""

    about: str
    x_title: str
    y_title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Series]
    diagonal: bool = False
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    @property
    def crowded(self) -> bool:
        """Whether intervals stand side by side, lest one hides the other."""
        lines = [one for one in self.series if one.spans]
        return len(lines) > 3 or (len(lines) > 1 and not any(one.line for one in lines))


class Scale:
    """Values to percent of an axis.

    Parameters
    ----------
    low, high : float
    logarithmic : bool
        Both ends are above 0 then.
    """

    def __init__(self, low: float, high: float, logarithmic: bool = False) -> None:
        self._of: Callable[[float], float] = log10 if logarithmic else float
        self._low, high = self._of(low), self._of(high)
        self._width = (high - self._low) or 1.0

    def __call__(self, value: float) -> float:
        """Percent from the low end, not cut off."""
        return round(100 * (self._of(value) - self._low) / self._width, 2)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most so many and one."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** floor(log10(rough))
    step = next(power * size for size in (1, 2, 2.5, 5, 10) if power * size >= rough * 0.999)
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [round(number * step, 10) for number in range(first, last + 1)]


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """Points as SVG has them."""
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def outline(number: int, x: float, y: float, r: float) -> str:
    """The path of a mark: circle, square, triangle, diamond, cross, wedge, star or hexagon."""
    shape = number % MARKS
    if shape == 0:
        return f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"
    if shape == 1:
        s = round(0.88 * r, 2)
        return f"M{x - s:.1f} {y - s:.1f}h{2 * s:g}v{2 * s:g}h{-2 * s:g}z"
    if shape == 4:
        a, b = round(0.4 * r, 2), round(0.7 * r, 2)
        return (
            f"M{x - a:.1f} {y - a - b:.1f}h{2 * a:g}v{b:g}h{b:g}v{2 * a:g}h{-b:g}v{b:g}"
            f"h{-2 * a:g}v{-b:g}h{-b:g}v{-2 * a:g}h{b:g}z"
        )
    corners, start, inner = {
        2: (3, -90, 0.0),
        3: (4, -90, 0.0),
        5: (3, 90, 0.0),
        6: (5, -90, 0.45),
        7: (6, 0, 0.0),
    }[shape]
    places = []
    for corner in range(corners * (2 if inner else 1)):
        turn = np.deg2rad(start + 360 * corner / (corners * (2 if inner else 1)))
        reach = 1.2 * r * (inner if inner and corner % 2 else 1.0)
        places.append(f"{x + reach * np.cos(turn):.1f} {y + reach * np.sin(turn):.1f}")
    return "M" + "L".join(places) + "z"


def colour_of(number: int) -> int:
    """The colour of series or class `number`: where marks repeat, it is another."""
    return (number + number // MARKS) % COLOURS
