"""Curves and grids as PNG files, drawn without a display."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from featpipe.classifier import Prediction
from featpipe.decode import decode
from featpipe.descent import Epochs
from featpipe.errors import DecodeError
from featpipe.images import ImageSource

TRAIN, VAL = "#1f77b4", "#d95f02"


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
