"""What a rung of a recipe came to, kept in a file so that it is run once."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from featpipe.durable import save_json
from featpipe.leakage import Gap
from featpipe.result import Result

log = logging.getLogger(__name__)

FORMAT = 2  # of the file; what is in another one is run again


@dataclass(frozen=True)
class Step:
    """A rung of a recipe's ladder that was run.

    Attributes
    ----------
    name : str
        ``as published``, or what it does instead of the fault.
    fault : str or None
    part : str
        ``val``, ``test`` or ``folds``: the rows scored.
    n : int
    accuracy : float
    interval : pair of float
        95 %, Wilson's: as if every image were of a group of its own.
    interval_by_group : pair of float or None
        95 %, of a bootstrap over whole groups as `featpipe.leakage.by_group` has it, which has a
        width at 100 %, too; None where none are known.
    wrong : list of str
        Ids of scored images whose class was not the likeliest.
    train_accuracy : float
    rows : dict of str to int
        Images of each part.
    scored : str
        Equal where the same images were scored.
    leak : dict or None
        `featpipe.leakage.Leak`; None where no groups are known.
    seconds : dict of str to float
        ``extract`` (recorded when it was done) and ``train``.
    backbone : str
    conditions : dict
        Everything that was set.
    notes : list of str
        What was done otherwise than the recipe says.
    unusable : list of str
        Ids of images without features.
    """

    name: str
    fault: str | None
    part: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    interval_by_group: tuple[float, float] | None
    wrong: list[str]
    train_accuracy: float
    rows: dict[str, int]
    scored: str
    leak: dict[str, int] | None
    seconds: dict[str, float]
    backbone: str
    conditions: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)

    @property
    def trusted(self) -> tuple[float, float]:
        """The interval to quote: by groups where they are known, else Wilson's."""
        return self.interval_by_group or self.interval


@dataclass(frozen=True)
class LeftOut:
    """A fault whose mending is not run on these images.

    Attributes
    ----------
    fault : str
    why : str
    in_force : bool
        Whether all that was run has it; if not, it has no place here to begin with.
    """

    fault: str
    why: str
    in_force: bool


@dataclass(frozen=True)
class Change:
    """What one step did after another.

    Attributes
    ----------
    points : float
        By how many percentage points the accuracy rose.
    lost, won : int or None
        Images that only the earlier, and only the later one has right; None where they did not
        score the same images.
    p_value : float or None
        Of McNemar's exact test.
    """

    points: float
    lost: int | None = None
    won: int | None = None
    p_value: float | None = None


def change(before: Step, after: Step) -> Change:
    """What mending a fault did."""
    points = 100 * (after.accuracy - before.accuracy)
    if before.scored != after.scored:
        return Change(points)
    earlier, later = set(before.wrong), set(after.wrong)
    lost, won = len(later - earlier), len(earlier - later)
    p_value = float(binomtest(won, lost + won).pvalue) if lost + won else 1.0
    return Change(points, lost, won, p_value)


def save_step(file: Path, key: str, step: Step, result: Result) -> None:
    """Keep what a rung came to, and all that was found on the way."""
    document = {"key": key, "format": FORMAT, "step": asdict(step), "result": result.to_dict()}
    save_json(file, document)


def read_step(file: Path, key: str) -> Step | None:
    """What a rung came to, if it was run to its end under this key."""
    found: Step | None = _read(file, key, "step", _step)
    return found


def save_gap(file: Path, key: str, gap: Gap) -> None:
    """Keep a gap."""
    save_json(file, {"key": key, "format": FORMAT, "gap": gap.to_dict()})


def read_gap(file: Path, key: str) -> Gap | None:
    """A gap, if it was measured under this key."""
    found: Gap | None = _read(file, key, "gap", Gap.from_dict)
    return found


def _step(values: dict[str, Any]) -> Step:
    for name in ("interval", "interval_by_group"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Step(**values)


def _read(file: Path, key: str, part: str, made: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if (document["key"], document["format"]) != (key, FORMAT):
            return None
        return made(document[part])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s); the %s is run again.", file, error, part)
        return None
