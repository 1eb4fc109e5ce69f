"""What a training run leaves, as pictures and as text."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from featpipe.cli._output import note, percent, say, seconds
from featpipe.cli._training import (
    print_budget,
    print_calibration,
    print_classes,
    print_curves,
    print_paired,
    print_scores,
    print_sweep,
)

Row = dict[str, float]


class Epochs:
    """Reports a training's epochs; called with each row of its curves.

    Attributes
    ----------
    last : str
        What the last one came to, in a few words.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs, self.last = epochs, ""
        self.report: Callable[[int, int], None] | None = None

    def __call__(self, row: Row) -> None:
        """Tell of one more, of at most so many."""
        words = [f"loss {row['train_loss']:.4f}"]
        if "val_loss" in row:
            words += [f"validation {row['val_loss']:.4f}", f"{percent(row['val_accuracy'])} %"]
        self.last = ", ".join(words)
        if self.report:
            self.report(int(row["epoch"]), self._epochs)


@contextlib.contextmanager
def saying_how_to_resume(folder: Path) -> Iterator[None]:
    """Where a training is interrupted, say that it goes on from what it has left in a folder."""
    try:
        yield
    except KeyboardInterrupt:
        if folder.is_dir():
            note(f"What was trained is kept in {folder}; the same command goes on from there.")
        raise


def draw(document: dict[str, Any], folder: Path, title: str) -> None:
    """Whatever there is to see, as pictures."""
    from featpipe.durable import save_json
    from featpipe.report.plots import plot_budget, plot_curves, plot_path, plot_reliability

    if document["curves"]:
        save_json(folder / "curves.json", document["curves"])
        plot_curves(document["curves"], folder / "curves.png", title)
    calibration = document["calibration"]
    if calibration:
        shown = f"{title}, {calibration['shown']}"
        after = calibration["after"]
        plot_reliability(calibration["before"], after, folder / "reliability.png", shown)
    sweep = document["sweep"]
    if sweep and len(sweep["candidates"]) > 1:
        metric = sweep["metric"]
        points = []
        for one in sweep["candidates"]:
            low, high = one["intervals_95"].get(metric) or (None, None)
            point = {"layer": one["layer"], "options": one["options"], "mean": one.get(metric)}
            points.append({**point, "low": low, "high": high})
        plot_path(points, folder / "sweep.png", title, sweep["best"], metric)
    if document["budget"]:
        series = {document["conditions"]["head"]: document["budget"]["points"]}
        plot_budget(series, folder / "budget.png", title)


def show(document: dict[str, Any], classes: tuple[str, ...]) -> None:
    """The result for people, on stdout."""
    if document["sweep"]:
        print_sweep(document["sweep"])
    elif document["curves"]:
        print_curves(document["curves"])
    scores = document["scores"]
    print_scores(scores)
    part = list(scores)[-1]
    print_classes(part, scores[part], classes)
    print_calibration(document["calibration"])
    print_paired(document["paired"], part)
    if document["budget"]:
        print_budget(document["budget"])
    conditions = document["conditions"]
    say()
    say(
        f"{conditions['head']} on {conditions['layer']} of {conditions['spec']['backbone']}"
        f"{' (RANDOM weights)' if conditions['spec']['random_weights'] else ''}; split "
        f"{conditions['split']['origin']}; {document['parameters']:,} parameters; "
        f"{seconds(document['seconds'])} s on {conditions['machine']['cpu']}"
    )
    views = conditions["views"]
    if max(views.values()) > 1:
        say(f"Views of an image: {views['trained']} to train on, {views['scored']} to score.")
    say(f"Saved in {document['out']}")
