"""The page of one training: from features, from a cut, from pixels, and of a recipe's way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featpipe.cache import FeatureCache
from featpipe.cli import cli
from featpipe.extract import extract_features
from featpipe.images import open_images
from featpipe.report.one_route import results_of
from featpipe.report.training import save_report
from featpipe.results import Results
from featpipe.settings import TrainSettings
from featpipe.train import train_head


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures of three classes, told by their colour but for a few."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for row in range(60):
        label = row % 3
        (folder / f"<b>{label}").mkdir(exist_ok=True)
        pixels = rng.integers(0, 120, (40, 40, 3))
        pixels[..., label if row % 10 else (label + 1) % 3] += 90
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"<b>{label}" / f"{row:02d}.png")
    return folder


@pytest.fixture(scope="module")
def features(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("features") / "photos.h5"
    extract_features(str(photos), "pixels", file).close()
    return file


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(cli, ["-q", *arguments])
    assert done.exit_code == 0, done.output
    return done


def test_a_head_leaves_a_page_that_can_be_made_again(features: Path, tmp_path: Path) -> None:
    run("train-head", str(features), "--head", "logistic", "-o", str(tmp_path), "--folds", "3")
    page = (tmp_path / "report.html").read_bytes()
    results = Results.load(tmp_path)
    (route,) = results.routes
    assert route.kind == "pixels"
    assert route.name == "pixels:pixels + logistic"
    assert results.map is not None
    said = json.loads((tmp_path / "result.json").read_text())
    part = list(said["scores"])[-1]
    assert route.accuracy is not None
    assert route.accuracy.value == said["scores"][part]["accuracy"]
    assert route.confusion == said["scores"][part]["confusion"]
    assert route.predictions is not None
    labels = [results.items.labels[row] for row in route.predictions.rows]
    right = np.equal(labels, route.predictions.predicted).mean()
    assert right == pytest.approx(route.accuracy.value)
    assert len(list((tmp_path / "thumbnails").glob("*.webp"))) == 60
    run("report", str(tmp_path))
    assert (tmp_path / "report.html").read_bytes() == page
    assert b"<b>0" not in page


def test_no_page_is_written_where_none_is_wanted(features: Path, tmp_path: Path) -> None:
    run("train-head", str(features), "--head", "knn", "-o", str(tmp_path), "--no-page")
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "results.json").exists()


def test_images_that_are_gone_leave_a_page_without_pictures(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FeatureCache.open(features) as cache:
        classifier, result = train_head(cache, "logistic")
        monkeypatch.setitem(cache.conditions, "images", {"location": str(tmp_path / "gone")})
        path = save_report(tmp_path, result, classifier.classes, cache, "gone")
    assert "no picture" in path.read_text("utf-8")


def test_a_network_from_scratch_leaves_a_page(photos: Path, tmp_path: Path) -> None:
    small = ["--epochs", "2", "--input-size", "32"]
    run("train-scratch", str(photos), "-o", str(tmp_path), *small)
    (route,) = Results.load(tmp_path).routes
    assert route.kind == "scratch"
    assert len(route.curves) == 2
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Training" in page
    assert "data:image" in page


def test_validation_rows_are_not_sold_as_a_test(features: Path) -> None:
    with FeatureCache.open(features) as cache:
        classifier, result = train_head(cache, "logistic", TrainSettings(val=0.3, test=0.0))
        results = results_of(result, classifier.classes, cache.table, "t")
    assert "validation images" in results.verdict.sentences[0]
    assert "expect less" in results.verdict.sentences[1]


def test_several_labels_an_image_have_figures_and_no_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["path,label"]
    for row in range(60):
        labels = [name for name, on in zip("rgb", rng.random(3) < 0.5, strict=True) if on] or ["r"]
        pixels = np.zeros((24, 24, 3), np.uint8)
        for name in labels:
            pixels[..., "rgb".index(name)] = 200
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,{'|'.join(labels)}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = open_images(str(tmp_path / "t.csv"))
    with extract_features(source, "pixels", tmp_path / "f.h5") as cache:
        settings = TrainSettings(separator="|")
        classifier, result = train_head(cache, "logistic", settings)
        path = save_report(tmp_path / "out", result, classifier.classes, cache, "several")
    results = Results.load(path.parent)
    assert results.routes[0].predictions is None
    assert results.classes == ["b", "g", "r"]
    assert len(results.routes[0].per_class) == 3
