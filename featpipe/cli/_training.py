"""What ``train-head`` reads from its options and prints of its results."""

import json
from collections.abc import Container, Iterable
from typing import Any

import click
import numpy as np

from featpipe.cli._output import percent, print_table, say, seconds

MOST_ROWS = 60  # of a table
MOST_VALUES = 10_000  # of an option


def assigned(item: str, option: str = "--set") -> tuple[str, str]:
    """``C=0.1`` as name and text."""
    name, equals, value = item.partition("=")
    if not equals:
        raise click.BadParameter(f"{option} takes NAME=VALUE, not {item!r}.")
    return name.replace("-", "_"), value


def value_of(text: str) -> Any:
    """A value that is no JSON is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def grid_of(items: Iterable[str], whole: Container[str] = ()) -> dict[str, list[Any]]:
    """``lr=1e-3,1e-2`` or ``C=1e-4:1e2:20`` as names and values.

    A range is geometric where both ends are above 0, else even; options named in `whole` take
    whole numbers.
    """
    grid: dict[str, list[Any]] = {}
    for item in items:
        name, text = assigned(item, "--sweep")
        if name in grid:
            raise click.BadParameter(f"--sweep has {name} twice: give all its values at once.")
        grid[name] = _range(text, name in whole) if text.count(":") == 2 else _listed(text)
        if not grid[name]:
            raise click.BadParameter(f"--sweep {item!r} has no values.")
    return grid


def _range(text: str, whole: bool) -> list[Any]:
    try:
        first, last, count = (float(part) for part in text.split(":"))
        fine = np.isfinite([first, last]).all() and count == int(count)
        if not (fine and 2 <= count <= MOST_VALUES):
            raise ValueError
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"--sweep takes FIRST:LAST:COUNT, such as 1e-4:1e2:20, not {text!r}."
        ) from None
    spaced = np.geomspace if first > 0 and last > 0 else np.linspace
    values = spaced(first, last, int(count)).tolist()
    if whole:
        return list(dict.fromkeys(round(value) for value in values))
    # Twelve digits: 0.1 and not 0.10000000000000002.
    return [float(f"{value:.12g}") for value in values]


def _listed(text: str) -> list[Any]:
    """Values between commas; lists are in brackets, such as hidden=[460],[512,256]."""
    try:
        whole: list[Any] = json.loads(f"[{text}]")
    except ValueError:
        return [value_of(part.strip()) for part in text.split(",") if part.strip()]
    return [tuple(value) if isinstance(value, list) else value for value in whole]


def budgets_of(text: str) -> list[int | None]:
    """``1,2,5,all`` as numbers of images a class, None for all."""
    try:
        sizes = [None if part.strip() == "all" else int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if any(size is not None and size < 1 for size in sizes):
        raise click.BadParameter(
            f"--budget takes numbers from 1 or all, such as 1,5,all: {text!r}."
        )
    return sizes


def print_curves(curves: list[dict[str, float]]) -> None:
    """About ten epochs, and which was kept."""
    names = [name for name in curves[0] if name != "epoch"]
    step = max(1, len(curves) // 10)
    shown = [row for i, row in enumerate(curves) if i % step == 0 or i == len(curves) - 1]
    print_table(
        ["epoch", *(name.replace("_", " ") for name in names)],
        [[str(row["epoch"]), *(f"{row[name]:.4f}" for name in names)] for row in shown],
    )
    if "val_loss" in curves[0]:
        kept = min(curves, key=lambda row: row["val_loss"])
        say(f"Kept: epoch {kept['epoch']}, of the lowest validation loss.")
    say()


def print_sweep(sweep: dict[str, Any]) -> None:
    """Every candidate with mean, interval, spread and seconds; the best is marked."""
    metric, every = sweep["metric"], sweep["candidates"]
    numbers = list(range(len(every)))
    if len(every) > MOST_ROWS:
        sign = 1 if metric == "log_loss" else -1
        numbers.sort(key=lambda i: sign * every[i].get(metric, sign * np.inf))
        numbers = sorted({*numbers[: MOST_ROWS // 2], sweep["best"]})
    layers = len({one["layer"] for one in every}) > 1
    options = list(every[0]["options"])
    shown = ["accuracy", "balanced_accuracy", "average_precision", "log_loss"]
    shown = [name for name in shown if any(name in one for one in every)]
    rows = []
    for number in numbers:
        one = every[number]
        row = ["*" if number == sweep["best"] else "", *([one["layer"]] if layers else [])]
        row += [_text(one["options"][name]) for name in options]
        for name in shown:
            missing = one["note"] if name == shown[-1] else "-"
            row.append(_figure(name, one[name]) if name in one else missing)
            if name == metric:
                interval = one["intervals_95"].get(name)
                spread = one["spread"].get(name)
                row.append("-" if interval is None else _to(name, interval))
                row.append("-" if spread is None else _figure(name, spread))
        rows.append([*row, seconds(one["seconds"])])
    columns = ["", *(["layer"] if layers else []), *options]
    for name in shown:
        columns.append("log-loss" if name == "log_loss" else f"{name.replace('_', ' ')} %")
        columns += ["95 % interval", "spread"] if name == metric else []
    print_table([*columns, "s"], rows, left=1 + layers)
    if len(numbers) < len(every):
        say(f"The best {len(numbers)} of {len(every)} candidates; result.json has all.")
    folds = f"{sweep['folds']} folds" if sweep["folds"] > 1 else "the validation rows"
    say(f"*: chosen by {metric.replace('_', ' ')} on {folds}.")
    say()


def _figure(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "log_loss" else percent(value)


def _to(name: str, interval: Iterable[float]) -> str:
    return " to ".join(_figure(name, end) for end in interval)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def print_scores(scores: dict[str, Any]) -> None:
    """One line for each part."""
    multilabel = any(part.get("multilabel") for part in scores.values())
    first = ["average_precision"] if multilabel else ["accuracy", "balanced_accuracy"]
    last = list(scores.values())[-1]
    top = [name for name in last if name.startswith("top_") and name.endswith("_accuracy")]
    names = [*first, *top, "macro_f1", "roc_auc", "average_precision"]
    names += ["expected_calibration_error", "brier", "log_loss"]
    names = list(dict.fromkeys(names))
    titles = {
        **{name: f"top-{name.split('_')[1]} %" for name in top}, "brier": "Brier",
        "average_precision": "mAP %", "accuracy": "accuracy %", "balanced_accuracy": "balanced %",
        "macro_f1": "macro-F1 %", "roc_auc": "ROC-AUC %", "log_loss": "log-loss",
        "expected_calibration_error": "calibration error %",
    }  # fmt: skip
    rows = []
    for part, found in scores.items():
        interval = found["intervals_95"][names[0]]
        row = [part, str(found["n"]), percent(found[names[0]])]
        row.append(_interval(interval))
        row += [percent(found.get(name)) for name in names[1:-2]]
        rows.append([*row, *(_number(found.get(name)) for name in names[-2:])])
    columns = ["rows", "images", titles[names[0]], "95 % interval"]
    print_table([*columns, *(titles[name] for name in names[1:])], rows)


def _interval(ends: list[float] | None) -> str:
    return "-" if ends is None else " to ".join(map(percent, ends))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_classes(part: str, scores: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Precision and recall by class, and the confusion of not too many."""
    say()
    say(f"By class ({part}):")
    rows = scores["per_class"]
    shown = rows
    if len(rows) > MOST_ROWS:
        shown = sorted(rows, key=lambda row: row["recall"])[:20]
    print_table(
        [
            "class",
            "images",
            "precision %",
            "95 % interval",
            "recall %",
            "95 % interval",
            "F1 %",
            "average precision %",
        ],
        [
            [
                row["class"],
                str(row["images"]),
                percent(row["precision"]),
                _interval(row["precision_interval_95"]),
                percent(row["recall"]),
                _interval(row["recall_interval_95"]),
                percent(row["f1"]),
                percent(row.get("average_precision")),
            ]
            for row in shown
        ],
    )
    if len(rows) > len(shown):
        say(f"The {len(shown)} of lowest recall of {len(rows)} classes; result.json has all.")
    if scores.get("confusion") and len(classes) <= 20:
        say()
        say(f"Confusion ({part}; rows are true classes):")
        print_table(
            ["", *classes],
            [
                [name, *map(str, counts)]
                for name, counts in zip(classes, scores["confusion"], strict=True)
            ],
        )


def print_calibration(calibration: dict[str, Any]) -> None:
    """The temperature, and what abstaining comes to."""
    if not calibration:
        return
    say()
    say(
        f"Temperature {calibration['temperature']:.3f}, fitted on {calibration['n']} rows "
        f"({calibration['fitted_on']})."
    )
    if "threshold" in calibration:
        parts = ", ".join(
            f"{name} {percent(found['coverage'])} % predicted, {percent(found['precision'])} % of "
            "it right"
            for name, found in calibration["abstention"].items()
        )
        say(f"Abstains below a confidence of {calibration['threshold']:.4f}: {parts}.")


def print_paired(paired: dict[str, Any], part: str) -> None:
    """This head less each other one, on the same images."""
    if not paired:
        return
    say()
    say(f"Against other heads ({part}):")
    rows = []
    for name, test in paired.items():
        value, low, high = test["accuracy_difference"]
        rows.append(
            [
                name,
                f"{100 * value:+.2f}",
                "-" if low is None else f"{100 * low:+.2f} to {100 * high:+.2f}",
                f"{test['first_only']} : {test['second_only']}",
                f"{test['p_value']:.3f}",
            ]
        )
    print_table(["head", "accuracy, points", "95 % interval", "only right", "McNemar p"], rows)


def print_budget(budget: dict[str, Any]) -> None:
    """Accuracy by labelled images a class."""
    say()
    rows = [
        [
            str(point["budget"]),
            str(point["images"]),
            percent(point["mean"]),
            f"{percent(point['low'])} to {percent(point['high'])}",
            str(len(point["accuracies"])),
        ]
        for point in budget["points"]
    ]
    print_table(["a class", "images", "accuracy %", "95 % interval", "repeats"], rows, left=0)
    say(
        f"Labelled images a class; scored on the {budget['scored']} {budget['scored_on']} rows, no "
        "other label used."
    )
