"""``featpipe predict``."""

import contextlib
import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from featpipe.cli._options import AGAIN, json_option, settings_options
from featpipe.settings import ExtractSettings

if TYPE_CHECKING:
    from featpipe.classifier import Classifier, Prediction


@click.command("predict")
@click.argument("classifier", type=click.Path(dir_okay=False))
@click.argument("images", nargs=-1, required=True)
@click.option("-o", "--out", help="File to write [default: standard output].")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Labels an image, the likeliest first.",
)
@click.option("--grid", metavar="PNG", help="Draw pictures from all over IMAGES with their labels.")
@click.option(
    "--grid-size",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="Pictures on the grid.",
)
@settings_options(ExtractSettings, "settings", only=AGAIN)
@json_option
@click.pass_obj
def command(
    quiet: bool,
    classifier: str,
    images: tuple[str, ...],
    out: str | None,
    top: int,
    grid: str | None,
    grid_size: int,
    settings: ExtractSettings,
    as_json: bool,
) -> None:
    """Label IMAGES, files or folders, with a CLASSIFIER; CSV, or JSON with --json.

    --weights says where the backbone's weights file lies, if it is not where it was.
    """
    from featpipe.classifier import Classifier
    from featpipe.cli._output import note, print_json, progress
    from featpipe.durable import save_json
    from featpipe.images import open_several
    from featpipe.report.plots import plot_grid

    for file in filter(None, (out, grid)):
        if not Path(file).parent.is_dir():
            raise click.BadParameter(f"there is no folder {Path(file).parent} for {file}.")
    loaded = Classifier.load(classifier, settings.trust_code)
    source = open_several(images)
    predictions = []
    with progress(quiet) as reporter:
        for prediction in loaded.predict(source, settings, on_progress=reporter("predict")):
            predictions.append(prediction)
    rows = [_row(prediction, loaded, top) for prediction in predictions]
    document = {
        "classifier": classifier,
        "classes": list(loaded.classes),
        "multilabel": loaded.multilabel,
        "threshold": loaded.threshold,
        "random_weights": loaded.spec.random_weights,
        "predictions": rows,
    }
    if as_json and out:
        save_json(Path(out), document)
    elif as_json:
        print_json(document)
    else:
        _write_csv(rows, out, min(top, len(loaded.classes)), loaded)
    if grid:
        usable = [prediction for prediction in predictions if prediction.proba is not None]
        shown = usable[:: max(1, len(usable) // grid_size)][:grid_size]
        title = "random weights: nothing was learnt" if loaded.spec.random_weights else ""
        plot_grid(shown, loaded.classes, source, grid, title=title)
        note(f"{len(shown)} of {len(usable)} pictures in {grid}")
    failed = sum(prediction.proba is None for prediction in predictions)
    if failed:
        note(f"{failed} of {len(rows)} images could not be used; the column reason says why.", True)
    unsure = sum(not row["sure"] for row in rows) - failed
    if unsure:
        note(f"{unsure} of {len(rows)} images are below the classifier's threshold: no label.")


def _row(prediction: "Prediction", loaded: "Classifier", top: int) -> dict[str, Any]:
    row: dict[str, Any] = {"id": prediction.id, "true": prediction.true, "label": None, "top": []}
    row |= {"sure": prediction.proba is not None and prediction.sure, "reason": prediction.reason}
    if prediction.proba is None:
        return row
    order = prediction.proba.argsort(kind="stable")[::-1]
    row["top"] = [
        {"label": loaded.classes[i], "probability": round(float(prediction.proba[i]), 6)}
        for i in order[:top]
    ]
    if loaded.multilabel:
        row["labels"] = [loaded.classes[i] for i in order if prediction.proba[i] >= 0.5]
        del row["label"]
    elif prediction.sure:
        row["label"] = row["top"][0]["label"]
    else:
        row["reason"] = f"its highest probability is below {loaded.threshold:.4f}"
    return row


def _write_csv(rows: list[dict[str, Any]], out: str | None, top: int, loaded: "Classifier") -> None:
    header = ["id", "true"]
    if loaded.multilabel:
        header.append("labels")
    elif loaded.threshold is not None:
        header.append("label")  # empty where it abstains
    for rank in range(1, top + 1):
        header += [f"label_{rank}", f"probability_{rank}"]
    with contextlib.ExitStack() as stack:
        file: TextIO = sys.stdout
        if isinstance(file, io.TextIOWrapper) and file.encoding.lower().startswith("utf"):
            file.reconfigure(errors="surrogateescape")  # a name's own bytes, as in a file
        if out:
            file = stack.enter_context(
                Path(out).open("w", encoding="utf-8", errors="surrogateescape", newline="")
            )
        writer = csv.writer(file)
        writer.writerow([*header, "reason"])
        for row in rows:
            cells = [cell for best in row["top"] for cell in (best["label"], best["probability"])]
            cells += [""] * (2 * top - len(cells))
            said = [row["id"], row["true"] or ""]
            if loaded.multilabel:
                said.append(";".join(row.get("labels", [])))
            elif loaded.threshold is not None:
                said.append(row["label"] or "")
            writer.writerow([*said, *cells, row["reason"]])
