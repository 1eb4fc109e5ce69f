"""Curves and grids: PNG files with something on them, whatever the classes are called."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featpipe.classifier import Prediction
from featpipe.images import ImageSource, open_images
from featpipe.report.plots import plot_curves, plot_grid

DATA = Path(__file__).parents[1] / "data"
RED = (176, 0, 32)
NAMES = ["$x^2$", "$\\frac$", "5$", "<b>&amp;", "개", "100%", "{0}", "a\nb", "", "c\udce9"]


@pytest.fixture(scope="module")
def source() -> ImageSource:
    """The sample images."""
    return open_images(DATA / "shapes")


def curves(epochs: int, validated: bool) -> list[dict[str, float]]:
    """Made-up curves; the lowest validation loss is in the second epoch."""
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 1 - 0.5 / epoch}
        if validated:
            row |= {"val_loss": 1 + abs(epoch - 2), "val_accuracy": 0.5}
        rows.append(row)
    return rows


def predictions(source: ImageSource, best: int, true: str | None, count: int) -> list[Prediction]:
    """The same prediction for each of the first images."""
    proba = np.where(np.arange(2) == best, 0.75, 0.25)
    return [Prediction(name, true, proba) for name in source.table.ids[:count]]


def colours(path: Path) -> set[tuple[int, int, int]]:
    """Colours that occur in a PNG file."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        found = image.convert("RGB").getcolors(image.width * image.height)
    assert found is not None
    return {colour for _, colour in found}


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_are_drawn(epochs: int, validated: bool, tmp_path: Path) -> None:
    plot_curves(curves(epochs, validated), tmp_path / "c.png", "a run")
    assert len(colours(tmp_path / "c.png")) > 2


def test_validation_is_drawn_in_a_colour_of_its_own(tmp_path: Path) -> None:
    orange = (0xD9, 0x5F, 0x02)
    plot_curves(curves(9, False), tmp_path / "without.png")
    plot_curves(curves(9, True), tmp_path / "with.png")
    assert orange not in colours(tmp_path / "without.png")
    assert orange in colours(tmp_path / "with.png")


@pytest.mark.parametrize("title", NAMES)
def test_any_title_can_be_drawn(title: str, tmp_path: Path) -> None:
    plot_curves(curves(2, True), tmp_path / "c.png", title)
    assert len(colours(tmp_path / "c.png")) > 2


def test_mistakes_alone_are_red(source: ImageSource, tmp_path: Path) -> None:
    names = ("circle", "square")
    for true, file in (("circle", "right"), ("square", "wrong"), (None, "unknown")):
        shown = predictions(source, 0, true, 2)
        # Pictures of one grey, so that no red comes from them.
        grey = Image.new("RGB", (8, 8), (128, 128, 128))
        plain = _only(source, grey, tmp_path)
        plot_grid(shown, names, plain, tmp_path / f"{file}.png")
    assert RED in colours(tmp_path / "wrong.png")
    assert RED not in colours(tmp_path / "right.png")
    assert RED not in colours(tmp_path / "unknown.png")


def _only(source: ImageSource, picture: Image.Image, folder: Path) -> ImageSource:
    picture.save(folder / "only.png")
    data = (folder / "only.png").read_bytes()
    return ImageSource("", source.table, lambda row: data)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_may_be_called_anything(name: str, source: ImageSource, tmp_path: Path) -> None:
    shown = predictions(source, 0, name, 1) + predictions(source, 1, name, 1)
    plot_grid(shown, (name, "circle"), source, tmp_path / "g.png")
    assert len(colours(tmp_path / "g.png")) > 100


def test_long_names_are_told_apart(source: ImageSource, tmp_path: Path) -> None:
    for letter in "ab":
        shown = predictions(source, 0, None, 1)
        plot_grid(shown, (letter * 40, "circle"), source, tmp_path / f"{letter}.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_a_grid_has_a_cell_for_each_picture(source: ImageSource, tmp_path: Path) -> None:
    sizes = {}
    for count in (1, 6, 7, 36):
        plot_grid(predictions(source, 0, None, count), ("a", "b"), source, tmp_path / "g.png")
        with Image.open(tmp_path / "g.png") as image:
            sizes[count] = image.size
    width, height = sizes[1]
    assert sizes[6] == (6 * width, height)
    assert sizes[7] == (6 * width, 2 * height)
    assert sizes[36] == (6 * width, 6 * height)


def test_images_without_a_prediction_are_left_out(source: ImageSource, tmp_path: Path) -> None:
    good = predictions(source, 0, None, 2)
    bad = [Prediction(name, None, None, "broken") for name in source.table.ids[2:9]]
    plot_grid(good, ("a", "b"), source, tmp_path / "good.png")
    plot_grid([*bad, *good], ("a", "b"), source, tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "good.png").read_bytes()


def test_a_grid_of_nothing_is_a_picture_too(source: ImageSource, tmp_path: Path) -> None:
    plot_grid([], ("a", "b"), source, tmp_path / "g.png")
    assert colours(tmp_path / "g.png") == {(255, 255, 255)}


def test_a_picture_that_has_gone_leaves_its_cell_empty(source: ImageSource, tmp_path: Path) -> None:
    gone = ImageSource("", source.table, lambda row: b"")
    plot_grid(predictions(source, 0, None, 2), ("a", "b"), gone, tmp_path / "gone.png")
    plot_grid(predictions(source, 0, None, 2), ("a", "b"), source, tmp_path / "g.png")
    with Image.open(tmp_path / "gone.png") as gone_png, Image.open(tmp_path / "g.png") as png:
        assert gone_png.size == png.size
