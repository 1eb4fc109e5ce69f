"""``featpipe train-head``."""

import re
from pathlib import Path
from typing import Any

import click

from featpipe.cli._options import json_option, settings_options
from featpipe.settings import TrainSettings


def _widths(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return tuple(int(width) for width in value.split(",") if width.strip())
    except ValueError:
        raise click.BadParameter("give whole numbers, such as 460 or 512,256.") from None


@click.command("train-head")
@click.argument("features", type=click.Path(dir_okay=False))
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--head",
    default="linear",
    show_default=True,
    help="linear, mlp, logistic, ridge, lda, knn, centroid, sklearn:MODULE.CLASS, ...",
)
@click.option("-o", "--out", help="Folder for what is made [default: FEATURES-HEAD, here].")
@click.option(
    "--sweep",
    multiple=True,
    metavar="NAME=VALUES ...",
    help="Choose among values of options, on validation rows: C=1e-4:1e2:20, or "
    "lr=1e-3,1e-2 weight_decay=0,1e-4.",
)
@click.option(
    "--layers", metavar="all|LAYER,...", help="Choose among layers, too, on validation rows."
)
@click.option(
    "--budget",
    metavar="1,2,5,all",
    help="Accuracy by labelled images a class, each drawn --repeats times.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="HEAD",
    help="Another head on the same rows, for a paired test; repeatable.",
)
@settings_options(TrainSettings, "settings")
@click.option("--hidden", callback=_widths, help="Widths of the hidden layers: 460, or 512,256.")
@click.option("--dropout", type=float)
@click.option("--batch-norm/--no-batch-norm", default=None, help="Before each hidden ReLU.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--optimizer", type=click.Choice(["adam", "adamw", "sgd"]))
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine", "one-cycle"]),
    help="Of the learning rate.",
)
@click.option("--momentum", type=float, help="Of SGD.")
@click.option("--weight-decay", type=float)
@click.option("--label-smoothing", type=float, help="Share of the target that classes share.")
@click.option("--mixup", type=float, help="Rows are mixed in pairs, by Beta(MIXUP, MIXUP).")
@click.option("--clip", type=float, help="Largest norm of the gradient.")
@click.option("--class-weight", type=click.Choice(["balanced"]), help="Of rows, by class.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--patience", type=int, help="Epochs without a lower validation loss; 0: never stop.")
@click.option("--standardize/--no-standardize", default=None)
@click.option(
    "--set", "extra", multiple=True, metavar="NAME=VALUE", help="Any other option of the head."
)
@json_option
@click.pass_obj
def command(
    quiet: bool,
    /,
    features: str,
    more: tuple[str, ...],
    head: str,
    out: str | None,
    sweep: tuple[str, ...],
    layers: str | None,
    budget: str | None,
    against: tuple[str, ...],
    settings: TrainSettings,
    extra: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train a head on FEATURES and save a classifier.

    Options that are not given are the head's own defaults. Leaves classifier.safetensors,
    result.json, split.csv, curves.json and curves.png where there are epochs, reliability.png
    where there are validation rows, sweep.png of a sweep and budget.png of a label budget.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    from featpipe.cache import FeatureCache
    from featpipe.cli._output import note, print_json, progress
    from featpipe.cli._training import assigned, budgets_of, grid_of, value_of
    from featpipe.heads import make_head
    from featpipe.split import save_split
    from featpipe.train import train_head

    if more and not sweep:
        raise click.BadParameter(f"{more[0]!r} stands behind no --sweep.")
    budgets = budgets_of(budget) if budget else []
    chosen = {name: value for name, value in options.items() if value is not None}
    for name, text in map(assigned, extra):
        chosen[name] = value_of(text)
    defaults = make_head(head).get_params()
    whole = {name for name, value in defaults.items() if type(value) is int}
    grid = grid_of([*sweep, *more], whole)
    for name in sorted(grid.keys() & chosen.keys()):
        raise click.BadParameter(f"{name} is given once for all candidates, and in --sweep.")
    folder = Path(out) if out else Path(f"{Path(features).stem}-{_slug(head)}")
    if folder.exists() and not folder.is_dir():
        raise click.BadParameter(f"{folder} is a file; --out names a folder.")
    with (
        FeatureCache.open(features) as cache,
        progress(quiet) as reporter,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", ConvergenceWarning)
        table = cache.table
        classifier, result = train_head(
            cache,
            head,
            settings,
            grid,
            [layer.strip() for layer in layers.split(",")] if layers else (),
            reporter("sweep"),
            budgets,
            against,
            **chosen,
        )
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        note(message, warning=True)
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / "result.json")
    classifier.save(folder / "classifier.safetensors")
    assert result.split is not None
    save_split(result.split, table, folder / "split.csv")
    document = {"out": str(folder), **result.to_dict()}
    random = " (random weights)" if classifier.spec.random_weights else ""
    _draw(document, folder, f"{Path(features).stem}: {head}{random}")
    if as_json:
        print_json(document)
    else:
        _print(document, classifier.classes)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _draw(document: dict[str, Any], folder: Path, title: str) -> None:
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


def _print(document: dict[str, Any], classes: tuple[str, ...]) -> None:
    from featpipe.cli._output import say, seconds
    from featpipe.cli._training import (
        print_budget,
        print_calibration,
        print_classes,
        print_curves,
        print_paired,
        print_scores,
        print_sweep,
    )

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
