"""``featpipe train-head``."""

import re
from pathlib import Path
from typing import Any

import click

from featpipe.cli._options import (
    descent_options,
    json_option,
    page_option,
    settings_options,
    tail_options,
)
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
    help="linear, mlp, logistic, ridge, lda, knn, centroid, tail, sklearn:MODULE.CLASS, ...",
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
@descent_options
@click.option("--mixup", type=float, help="Rows are mixed in pairs, by Beta(MIXUP, MIXUP).")
@click.option(
    "--train", type=click.Choice(["last", "all"]), help="What of the tail: its last layer, or all."
)
@tail_options
@click.option(
    "--weights", metavar="PATH", help="Where the tail's backbone has its weights, if elsewhere."
)
@click.option("--standardize/--no-standardize", default=None)
@click.option(
    "--set", "extra", multiple=True, metavar="NAME=VALUE", help="Any other option of the head."
)
@page_option
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
    page: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a head on FEATURES and save a classifier.

    Options that are not given are the head's own defaults. Leaves classifier.safetensors,
    result.json, split.csv, curves.json and curves.png where there are epochs, reliability.png
    where there are validation rows, sweep.png of a sweep and budget.png of a label budget; and
    report.html, one page of all of it, with what it was made of: results.json and thumbnails.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    from featpipe.cache import FeatureCache
    from featpipe.checkpoint import Checkpoints
    from featpipe.cli._output import note, print_json, progress
    from featpipe.cli._results import Epochs, draw, saying_how_to_resume, show
    from featpipe.cli._training import assigned, budgets_of, grid_of, value_of
    from featpipe.heads import make_head
    from featpipe.report.training import save_report
    from featpipe.result import save_run
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
    epochs = Epochs({**defaults, **chosen}.get("epochs", 0))
    folder = Path(out) if out else Path(f"{Path(features).stem}-{_slug(head)}")
    if folder.exists() and not folder.is_dir():
        raise click.BadParameter(f"{folder} is a file; --out names a folder.")
    with (
        FeatureCache.open(features) as cache,
        progress(quiet, lambda: epochs.last) as reporter,
        warnings.catch_warnings(record=True) as caught,
        saying_how_to_resume(folder / "unfinished"),
    ):
        warnings.simplefilter("always", ConvergenceWarning)
        table, report = cache.table, reporter("sweep")
        if head == "tail":
            epochs.report = reporter("train")
        classifier, result = train_head(
            cache,
            head,
            settings,
            grid,
            [layer.strip() for layer in layers.split(",")] if layers else (),
            report,
            budgets,
            against,
            folder / "unfinished",
            epochs,
            **chosen,
        )
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        note(message, warning=True)
    save_run(folder, classifier, result, table)
    Checkpoints(folder / "unfinished").clear()
    document = {"out": str(folder), **result.to_dict()}
    random = " (random weights)" if classifier.spec.random_weights else ""
    title = f"{Path(features).stem}: {head}{random}"
    draw(document, folder, title)
    if page:
        with FeatureCache.open(features) as cache:
            save_report(folder, result, classifier.classes, cache, title)
    if as_json:
        print_json(document)
    else:
        show(document, classifier.classes)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
