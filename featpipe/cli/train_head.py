"""``featpipe train-head``."""

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
@click.option(
    "--head",
    default="linear",
    show_default=True,
    help="linear, mlp, logistic, ridge, lda, knn, ...",
)
@click.option("-o", "--out", help="Folder for what is made [default: FEATURES-HEAD, here].")
@settings_options(TrainSettings, "settings")
@click.option("--hidden", callback=_widths, help="Widths of the hidden layers: 460, or 512,256.")
@click.option("--dropout", type=float)
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--optimizer", type=click.Choice(["adam", "adamw", "sgd"]))
@click.option("--momentum", type=float, help="Of SGD.")
@click.option("--weight-decay", type=float)
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--patience", type=int, help="Epochs without a lower validation loss; 0: never stop.")
@click.option("--standardize/--no-standardize", default=None)
@click.option(
    "--set", "extra", multiple=True, metavar="NAME=VALUE", help="Any other option of the head."
)
@json_option
def command(
    features: str,
    head: str,
    out: str | None,
    settings: TrainSettings,
    extra: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train a head on FEATURES and save a classifier.

    Options that are not given are the head's own defaults. Leaves classifier.safetensors,
    result.json and, where there are epochs, curves.json and curves.png.
    """
    from featpipe.cli._output import print_json
    from featpipe.durable import save_json
    from featpipe.report.plots import plot_curves
    from featpipe.train import train_head

    chosen = {name: value for name, value in options.items() if value is not None}
    chosen |= dict(_parse(item) for item in extra)
    classifier, result = train_head(features, head, settings, **chosen)
    folder = Path(out) if out else Path(f"{Path(features).stem}-{head}")
    folder.mkdir(parents=True, exist_ok=True)
    classifier.save(folder / "classifier.safetensors")
    result.save(folder / "result.json")
    if result.curves:
        save_json(folder / "curves.json", result.curves)
        random = " (random weights)" if classifier.spec.random_weights else ""
        plot_curves(result.curves, folder / "curves.png", f"{Path(features).stem}: {head}{random}")
    document = {"out": str(folder), **result.to_dict()}
    if as_json:
        print_json(document)
    else:
        _print_result(document, classifier.classes)


def _parse(item: str) -> tuple[str, Any]:
    """``C=0.1`` as name and value; a value that is no JSON is text."""
    import json

    name, equals, value = item.partition("=")
    if not equals:
        raise click.BadParameter(f"--set takes NAME=VALUE, not {item!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print_result(document: dict[str, Any], classes: tuple[str, ...]) -> None:
    from featpipe.cli._output import percent, print_table, say, seconds

    curves = document["curves"]
    if curves:
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
    rows = []
    for part, scores in document["scores"].items():
        low, high = scores["accuracy_interval_95"]
        rows.append(
            [
                part,
                str(scores["n"]),
                percent(scores["accuracy"]),
                f"{percent(low)} to {percent(high)}",
                percent(scores["balanced_accuracy"]),
                percent(scores["macro_f1"]),
            ]
        )
    print_table(["rows", "images", "accuracy %", "95 % interval", "balanced %", "macro-F1 %"], rows)
    part = list(document["scores"])[-1]
    scores = document["scores"][part]
    say()
    say(f"By class ({part}):")
    print_table(
        ["class", "images", "precision %", "recall %", "F1 %"],
        [
            [
                c["class"],
                str(c["images"]),
                percent(c["precision"]),
                percent(c["recall"]),
                percent(c["f1"]),
            ]
            for c in scores["per_class"]
        ],
    )
    if len(classes) <= 20:
        say()
        say(f"Confusion ({part}; rows are true classes):")
        print_table(
            ["", *classes],
            [
                [name, *map(str, counts)]
                for name, counts in zip(classes, scores["confusion"], strict=True)
            ],
        )
    conditions = document["conditions"]
    say()
    say(
        f"{conditions['head']} on {conditions['layer']} of {conditions['spec']['backbone']}"
        f"{' (RANDOM weights)' if conditions['spec']['random_weights'] else ''}; split "
        f"{conditions['split']['origin']}; {document['parameters']:,} parameters; "
        f"{seconds(document['seconds'])} s on {conditions['machine']['cpu']}"
    )
    say(f"Saved in {document['out']}")
