"""Curves and grids: PNG files with something on them, whatever the classes are called."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from featpipe.calibration import reliability
from featpipe.classifier import Prediction
from featpipe.images import ImageSource, open_images
from featpipe.report.plots import (
    _numeric_option,
    _tell_apart,
    plot_budget,
    plot_curves,
    plot_grid,
    plot_path,
    plot_reliability,
)

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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved, still to be asked what is on them."""
    saved: list[Figure] = []
    save = Figure.savefig

    def remember(figure: Figure, *arguments: Any, **options: Any) -> None:
        save(figure, *arguments, **options)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


def candidate(mean: float | None, layer: str = "fc", **options: Any) -> dict[str, Any]:
    """A sweep's candidate, its interval two points to either side."""
    ends = (None, None) if mean is None else (mean - 0.02, mean + 0.02)
    return {"layer": layer, "options": options, "mean": mean, "low": ends[0], "high": ends[1]}


def legend(figure: Figure) -> list[str]:
    """What the legend beside the axes says."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def nothing_is_clipped(figure: Figure) -> bool:
    """Whether every text lies inside the picture."""
    whole = figure.bbox
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    return all(
        box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1
        for box in boxes
    )


def outcomes(n: int) -> list[dict[str, Any]]:
    """Bins of made-up predictions."""
    proba = np.random.default_rng(0).dirichlet([0.5, 0.5], size=n)
    return reliability(proba, proba.argmax(axis=1))


@pytest.mark.parametrize("n", [1, 500])
def test_reliability_is_drawn_before_and_after(n: int, drawn: list[Figure], tmp_path: Path) -> None:
    blue, orange = (0x1F, 0x77, 0xB4), (0xD9, 0x5F, 0x02)
    plot_reliability(outcomes(n), None, tmp_path / "one.png", "before")
    plot_reliability(outcomes(n), outcomes(n), tmp_path / "two.png", "both")
    assert orange in colours(tmp_path / "one.png")
    assert blue not in colours(tmp_path / "one.png")
    assert {blue, orange} <= colours(tmp_path / "two.png")
    assert all(nothing_is_clipped(figure) for figure in drawn)
    # The strip beneath has a bar of each bin, as high as its count.
    bars = [bar.get_height() for bar in drawn[0].axes[1].patches]
    assert bars == [row["count"] for row in outcomes(n)]


def test_a_sweep_has_a_line_for_each_combination(drawn: list[Figure], tmp_path: Path) -> None:
    sweep = [
        candidate(0.5 + 0.05 * i + 0.01 * (layer == "fc7") + 0.02 * whiten, layer, C=c,
                  whiten=whiten, k=3)
        for i, c in enumerate([0.01, 0.1, 1.0, 10.0])
        for layer in ("fc6", "fc7")
        for whiten in (False, True)
    ]  # fmt: skip
    plot_path([*sweep, candidate(None, "fc8", C=1.0)], tmp_path / "p.png", "a sweep")
    (axes,) = drawn[0].axes
    assert legend(drawn[0]) == [
        "fc7, whiten=True", "fc6, whiten=True", "fc7, whiten=False", "fc6, whiten=False", "chosen",
    ]  # fmt: skip
    assert axes.get_xlabel() == "C"
    assert axes.get_xscale() == "log"
    first, star = axes.lines[0], axes.lines[-1]
    assert list(first.get_xdata()) == [0.01, 0.1, 1.0, 10.0]
    assert list(first.get_ydata()) == pytest.approx([53, 58, 63, 68])
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([10.0], pytest.approx([68]))
    assert nothing_is_clipped(drawn[0])


@pytest.mark.parametrize(
    ("values", "scale"),
    [((1, 20), "linear"), ((1, 21), "log"), ((0, 100), "linear"), ((-1, 100), "linear")],
)
def test_only_wide_and_positive_values_are_spaced_by_their_ratio(
    values: tuple[int, int], scale: str, drawn: list[Figure], tmp_path: Path
) -> None:
    plot_path([candidate(0.5, C=value) for value in values], tmp_path / "p.png")
    assert drawn[0].axes[0].get_xscale() == scale
    assert legend(drawn[0]) == ["mean", "chosen"]


def test_of_many_lines_the_best_are_drawn(drawn: list[Figure], tmp_path: Path) -> None:
    sweep = [candidate(0.5 + i / 100, f"layer.{i}", k=k) for i in range(20) for k in (1, 3)]
    plot_path(sweep, tmp_path / "p.png")
    assert legend(drawn[0]) == [f"layer.{i}" for i in range(19, 7, -1)] + ["chosen"]
    assert drawn[0].axes[0].get_title() == "the best 12 of 20 lines"
    assert nothing_is_clipped(drawn[0])


def test_without_numbers_candidates_are_bars(drawn: list[Figure], tmp_path: Path) -> None:
    sweep = [candidate(mean, head=head, C=1.0) for head, mean in (("knn", 0.6), ("_lda", 0.8))]
    sweep.append({**candidate(0.7, head="ridge", C=1.0), "low": None, "high": None})
    plot_path(sweep, tmp_path / "p.png")
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([80, 70, 60])
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert shown == ["head=_lda", "head=ridge", "head=knn"]
    many = [
        candidate(0.5 + i / 100, f"a rather long name of a layer, number {i}") for i in range(40)
    ]
    plot_path(many, tmp_path / "many.png")
    assert len(drawn[1].axes[0].patches) == 24
    assert drawn[1].axes[0].get_title() == "the best 24 of 40"
    assert all(nothing_is_clipped(figure) for figure in drawn)


def test_one_candidate_or_none_is_a_picture_too(drawn: list[Figure], tmp_path: Path) -> None:
    plot_path([candidate(0.5, "fc7", C=1.0)], tmp_path / "p.png")
    assert [text.get_text() for text in drawn[0].axes[0].get_yticklabels()] == ["fc7"]
    plot_path([], tmp_path / "p.png")
    plot_path([candidate(None, C=1.0)], tmp_path / "p.png")
    plot_budget({}, tmp_path / "b.png")
    assert [len(figure.axes[0].patches) for figure in drawn] == [1, 0, 0, 0]


def test_the_axis_is_the_number_with_most_values() -> None:
    grid = [candidate(0.5, C=c, k=k) for c in (1, 2) for k in (1, 3, 5)]
    assert _numeric_option(grid) == "k"
    # No number everywhere: not for candidates without it, nor for switches.
    assert _numeric_option([candidate(0.5, C=1), candidate(0.5, C=None)]) is None
    assert _numeric_option([candidate(0.5, C=1), candidate(0.5, k=1)]) is None
    assert _numeric_option([candidate(0.5, on=True), candidate(0.5, on=False)]) is None
    assert _numeric_option([candidate(0.5, C=1), candidate(0.6, C=1)]) is None


def test_candidates_are_named_by_what_varies() -> None:
    heads = [candidate(0.5, C=0.0001, tol=1), candidate(0.5, k=(1, 2), tol=1)]
    assert _tell_apart(heads) == ["C=0.0001", "k=(1, 2)"]


def test_budgets_are_ticked_and_spaced_by_their_ratio(drawn: list[Figure], tmp_path: Path) -> None:
    budgets = [50, 1, 2, 5, 20, 21, 10]
    rows = [{"budget": b, "mean": 0.5, "low": 0.4, "high": 0.6} for b in budgets]
    plot_budget({"transfer": rows, "scratch": rows[:1]}, tmp_path / "b.png", "by budget")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "5", "10", "20", "50"]
    assert list(axes.lines[0].get_xdata()) == sorted(budgets)
    assert list(axes.lines[0].get_ydata()) == [50] * 7
    assert legend(drawn[0]) == ["transfer", "scratch"]
    assert nothing_is_clipped(drawn[0])


@pytest.mark.parametrize("name", NAMES)
def test_lines_and_bars_may_be_called_anything(
    name: str, drawn: list[Figure], tmp_path: Path
) -> None:
    rows = [{"budget": 5, "mean": 0.5, "low": None, "high": None}]
    plot_budget({name: rows, f"_{name}": rows}, tmp_path / "p.png", name)
    plot_path([candidate(0.5, name, head=0), candidate(0.6, "fc", head=name)], tmp_path / "p.png")
    plot_path([candidate(0.5, name, **{name: 1}), candidate(0.6, **{name: 2})], tmp_path / "p.png")
    plot_reliability(outcomes(9), None, tmp_path / "p.png", name)
    assert len(legend(drawn[0])) == 2
    assert len(drawn) == 4


def test_of_a_loss_less_is_better_and_the_winner_is_the_one_given(
    drawn: list[Figure], tmp_path: Path
) -> None:
    sweep = [candidate(mean, C=C) for mean, C in ((1.6, 1.0), (0.4, 2.0), (0.4, 3.0))]
    plot_path(sweep, tmp_path / "p.png", best=2, metric="log_loss")
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == "log-loss"
    line, star = axes.lines
    assert list(line.get_ydata()) == pytest.approx([1.6, 0.4, 0.4])
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([3.0], pytest.approx([0.4]))
    plot_path(sweep, tmp_path / "p.png", metric="average_precision")
    assert drawn[1].axes[0].get_ylabel() == "average precision (%)"
    assert list(drawn[1].axes[0].lines[-1].get_xdata()) == [1.0]
