"""Curves and grids as PNG files, drawn without a display."""

import warnings
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featpipe.classifier import Prediction
from featpipe.decode import decode
from featpipe.descent import Epochs
from featpipe.errors import DecodeError
from featpipe.images import ImageSource

TRAIN, VAL = "#1f77b4", "#d95f02"
MOST_LINES, MOST_BARS = 12, 24

Bins = Sequence[Mapping[str, Any]]


def plot_curves(curves: Epochs, path: str | Path, title: str = "") -> None:
    """Draw loss and accuracy by epoch; with validation rows, mark the epoch that was kept.

    Parameters
    ----------
    curves : list of dict
        Of `Result.curves`.
    path : str or Path
        A PNG file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in curves]
    validated = all("val_loss" in row for row in curves)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[f"train_{what}"] for row in curves], color=TRAIN, label="train")
        if validated:
            axes.plot(epochs, [row[f"val_{what}"] for row in curves], color=VAL, label="validation")
            best = min(curves, key=lambda row: row["val_loss"])
            axes.axvline(best["epoch"], color="0.6", linestyle=":", label="kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(_printable(title), parse_math=False)
    _save(figure, path)


def plot_grid(
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    images: ImageSource,
    path: str | Path,
    columns: int = 6,
    title: str = "",
) -> None:
    """Draw pictures with their predicted and, where known, true labels; mistakes in red.

    Parameters
    ----------
    predictions : sequence of Prediction
        Of rows of `images`, in any order; those without a prediction are left out.
    classes : sequence of str
    images : ImageSource
    path : str or Path
        A PNG file.
    """
    row_of = {name: row for row, name in enumerate(images.table.ids)}
    shown = [prediction for prediction in predictions if prediction.proba is not None]
    columns = max(1, min(columns, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(2.2 * columns, 2.6 * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, prediction in zip(cells, shown, strict=False):
        assert prediction.proba is not None
        try:
            picture = decode(images.read(row_of[prediction.id]))
        except (DecodeError, OSError):
            continue  # it was readable a moment ago; the cell stays empty
        picture.thumbnail((320, 320))
        axes.imshow(picture)
        best = int(prediction.proba.argmax())
        lines = [f"{_shorten(classes[best], 20)}  {prediction.proba[best]:.0%}"]
        wrong = prediction.true is not None and prediction.true != classes[best]
        if wrong:
            lines.append(f"is {_shorten(prediction.true or '')}")
        text = _printable("\n".join(lines))
        # A class may be called anything, $x^2$ too.
        axes.set_title(text, fontsize=9, color="#b00020" if wrong else "black", parse_math=False)
    if title:
        figure.suptitle(title, parse_math=False)
    _save(figure, path)


def plot_reliability(
    bins_before: Bins, bins_after: Bins | None, path: str | Path, title: str = ""
) -> None:
    """Draw how often predictions are right against how sure they are.

    Parameters
    ----------
    bins_before, bins_after : list of dict
        Of `featpipe.calibration.reliability`, before and after calibration; `bins_after` may
        be None.
    path : str or Path
        A PNG file.
    title : str
    """
    figure = Figure(figsize=(5.5, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="as sure as right")
    drawn = [("as predicted", bins_before, VAL)]
    if bins_after is not None:
        drawn = [("before", bins_before, VAL), ("after calibration", bins_after, TRAIN)]
    for place, (name, bins, colour) in enumerate(drawn):
        right = [row["accuracy"] for row in bins]
        reach = [
            [max(0.0, row["accuracy"] - row["low"]) for row in bins],
            [max(0.0, row["high"] - row["accuracy"]) for row in bins],
        ]
        sure = [row["confidence"] for row in bins]
        above.errorbar(sure, right, reach, fmt="o", color=colour, capsize=2, label=name)
        for row in bins:
            width = (row["stop"] - row["start"]) / len(drawn)
            below.bar(
                row["start"] + place * width, row["count"], 0.9 * width, align="edge", color=colour
            )
    above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share that is right")
    above.legend(loc="upper left")
    below.set(xlabel="confidence", ylabel="predictions")
    below.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.suptitle(_printable(title), parse_math=False)
    _save(figure, path)


def plot_path(
    candidates: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str = "",
    best: int | None = None,
    metric: str = "accuracy",
) -> None:
    """Draw what a sweep's candidates came to, the winner marked.

    The numeric option with most values goes along the axis; every combination of the others
    is a line. Without one, candidates are bars.

    Parameters
    ----------
    candidates : sequence of dict
        ``layer``, ``options`` (name to value), and ``mean`` with the interval ``low`` to
        ``high``, each a number or None. Those without a mean are left out; of more than 12
        lines, or 24 bars, the best are drawn.
    path : str or Path
        A PNG file.
    title : str
    best : int
        Number of the winner; the first of the best mean, if left out.
    metric : str
        A share, drawn in percent; or ``log_loss``, of which less is better.
    """
    loss = metric == "log_loss"
    numbers = [i for i, candidate in enumerate(candidates) if candidate["mean"] is not None]
    numbers.sort(key=lambda i: (i != best, candidates[i]["mean"] * (1 if loss else -1)))
    known = _scaled([candidates[i] for i in numbers], 1 if loss else 100)
    along = _numeric_option(known)
    name = metric.replace("_", "-" if loss else " ")
    what = name if loss else f"{name} (%)"
    figure = _draw_lines(known, along, what) if along else _draw_bars(known, what)
    figure.suptitle(_printable(title), parse_math=False)
    _save(figure, path)


def plot_budget(
    series: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, title: str = ""
) -> None:
    """Draw accuracy by the number of labelled images a class.

    Parameters
    ----------
    series : dict of str to list of dict
        By name, ``budget`` (images a class), ``mean`` accuracy, and its interval ``low`` to
        ``high``, in [0, 1].
    path : str or Path
        A PNG file.
    title : str
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    budgets: set[int] = set()
    for number, rows in enumerate(series.values()):
        rows = sorted(_scaled(rows, 100), key=lambda row: row["budget"])
        places = [row["budget"] for row in rows]
        _draw_band(axes, places, rows, number)
        budgets.update(places)
    axes.set_xscale("log")
    axes.set_xticks([], minor=True)
    ticks: list[int] = []
    for budget in sorted(budgets):
        if not ticks or budget >= 1.25 * ticks[-1]:  # nearer ones would print over each other
            ticks.append(budget)
    axes.set_xticks(ticks, [str(budget) for budget in ticks])
    axes.set(xlabel="labelled images a class", ylabel="accuracy (%)")
    axes.grid(alpha=0.3)
    _draw_legend(figure, list(series))
    figure.suptitle(_printable(title), parse_math=False)
    _save(figure, path)


def _draw_lines(known: Sequence[Mapping[str, Any]], along: str, what: str) -> Figure:
    """Lines of the combinations of the options other than `along`; `known` is best first."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for candidate, name in zip(known, _tell_apart(known, along), strict=True):
        lines.setdefault(name, []).append(candidate)
    shown = dict(list(lines.items())[:MOST_LINES])
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, rows in enumerate(shown.values()):
        rows.sort(key=lambda row: row["options"][along])
        _draw_band(axes, [row["options"][along] for row in rows], rows, number)
    values = [row["options"][along] for row in known]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    best = known[0]
    axes.plot(best["options"][along], best["mean"], "k*", markersize=12, mec="white", zorder=4)
    axes.set_xlabel(_printable(_shorten(along, 48)), parse_math=False)
    axes.set_ylabel(what)
    if len(shown) < len(lines):
        axes.set_title(f"the best {len(shown)} of {len(lines)} lines", fontsize=9, color="0.3")
    axes.grid(alpha=0.3)
    _draw_legend(figure, [*(name or "mean" for name in shown), "chosen"])
    return figure


def _draw_bars(known: Sequence[Mapping[str, Any]], what: str) -> Figure:
    """The best candidates as bars, from above; `known` best first."""
    shown = known[:MOST_BARS]
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, candidate in enumerate(shown):
        mean, low, high = (candidate[key] for key in ("mean", "low", "high"))
        axes.barh(place, mean, color=TRAIN if place == 0 else "#9ecae1")
        axes.plot([low, high], [place, place], color="0.2", marker="|")
    names = [name or known[0]["layer"] for name in _tell_apart(known)[: len(shown)]]
    labels = [_printable(_shorten(name, 48)) for name in names]
    axes.set_yticks(range(len(shown)), labels, parse_math=False)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)  # the first on top
    axes.set_xlabel(what)
    if len(shown) < len(known):
        axes.set_title(f"the best {len(shown)} of {len(known)}", fontsize=9, color="0.3")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    return figure


def _draw_band(
    axes: Axes, places: Sequence[float], rows: Sequence[Mapping[str, Any]], number: int
) -> None:
    """Line `number`: means, in the band of their intervals."""
    colour, style = f"C{number % 10}", "-" if number < 10 else "--"  # there are ten colours
    mean, low, high = ([row[key] for row in rows] for key in ("mean", "low", "high"))
    axes.plot(places, mean, style, color=colour, marker="o", markersize=4)
    axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.vlines(places, low, high, color=colour, alpha=0.3)  # a band needs two points


def _draw_legend(figure: Figure, names: Sequence[str]) -> None:
    """Names of the lines, beside the axes, where they hide nothing."""
    if not names:
        return
    shown = [_printable(_shorten(name, 40)) for name in names]
    legend = figure.legend(figure.axes[0].lines, shown, loc="outside right center", fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _numeric_option(candidates: Sequence[Mapping[str, Any]]) -> str | None:
    """The option that is a number in every candidate and has most values, at least two."""
    values = {}
    for name in candidates[0]["options"] if candidates else ():
        found = [candidate["options"].get(name) for candidate in candidates]
        if all(isinstance(value, int | float) and type(value) is not bool for value in found):
            values[name] = len(set(found))
    most = max(values, key=lambda name: values[name], default="")
    return most if values.get(most, 0) > 1 else None


def _tell_apart(candidates: Sequence[Mapping[str, Any]], along: str | None = None) -> list[str]:
    """What each candidate has that not all have, the option `along` left out."""
    described = [
        {"layer": candidate["layer"], **candidate["options"], along: None}
        for candidate in candidates
    ]
    keys = dict.fromkeys(key for options in described for key in options)
    varied = [key for key in keys if len({repr(options.get(key)) for options in described}) > 1]
    return [
        ", ".join(_named(key, options[key]) for key in varied if key in options)
        for options in described
    ]


def _named(key: str | None, value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return shown if key == "layer" else f"{key}={shown}"


def _scaled(rows: Sequence[Mapping[str, Any]], scale: float) -> list[dict[str, Any]]:
    """Rows whose mean and interval are multiplied; what is not known is NaN, drawn nowhere."""
    keys = ("mean", "low", "high")
    return [
        {**row, **{key: nan if row[key] is None else scale * row[key] for key in keys}}
        for row in rows
    ]


def _save(figure: Figure, path: str | Path) -> None:
    with warnings.catch_warnings():
        # A letter that no installed font has is drawn as a box; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(path, format="png", dpi=120)


def _shorten(name: str, width: int = 24) -> str:
    name = " ".join(name.split())
    return name if len(name) <= width else name[: width - 3] + "..."


def _printable(text: str) -> str:
    """Bytes of a name that are not UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
