"""Figures as a reader wants them, and names that cannot steer what is around them."""

import re
from typing import Any

from markupsafe import Markup, escape

UNKNOWN = "–"
# Control characters, line and paragraph breaks, marks that turn the direction of writing, and
# bytes that are not UTF-8.
STEERING = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LARGE = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


def printable(value: Any) -> Any:
    """Text on one line, such letters as escapes; a dash for None; markup and numbers as they are.

    A line break becomes a space.
    """
    if value is None:
        return UNKNOWN
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = value.replace("\r\n", " ").replace("\n", " ")
    return STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def soft(value: Any) -> Markup:
    """A name that may be broken behind its punctuation."""
    return Markup(re.sub(r"([_/.-])(?=[^\W\d])", r"\1<wbr>", str(escape(printable(value)))))


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return UNKNOWN
    return f"{100 * value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def between(interval: tuple[float, float] | None, signed: bool = False) -> str:
    """``94.1 to 97.9``."""
    if interval is None:
        return UNKNOWN
    return " to ".join((points if signed else percent)(end) for end in interval)


def seconds(value: float | None) -> str:
    """``0.42 s``, ``35 s``, ``12 min``, ``3.1 h``."""
    if value is None:
        return UNKNOWN
    if value < 10:
        return f"{value:.2g} s"
    if value < 60:
        return f"{value:.0f} s"
    if value < 600 and value % 60:
        return f"{value / 60:.1f} min"
    return f"{value / 60:.0f} min" if value < 3600 else f"{value / 3600:.3g} h"


def large(value: float | None) -> str:
    """``1.28 M``; small numbers as they are."""
    if value is None:
        return UNKNOWN
    for size, letter in _LARGE:
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def megabytes(value: float | None) -> str:
    """``512 MB``, ``3.2 GB``."""
    if value is None:
        return UNKNOWN
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def plain(value: Any) -> str:
    """A value of the conditions."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value if one != {}) or UNKNOWN
    return UNKNOWN if value is None or value == "" else str(value)
