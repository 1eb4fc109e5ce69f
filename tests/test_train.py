"""Stage two: a cache becomes a classifier and a result."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featpipe.cache import FeatureCache
from featpipe.errors import HeadError, LayerError, SplitError
from featpipe.extract import extract_features
from featpipe.images import open_images
from featpipe.settings import ExtractSettings, ImageSettings, TrainSettings
from featpipe.train import train_head

DATA = Path(__file__).parents[1] / "data"
QUICK = {"epochs": 8, "device": "cpu"}


def manifest_cache(rows: list[dict[str, str]], folder: Path) -> FeatureCache:
    """Raw pixels of the images that a table lists."""
    table = folder / "table.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split", "group"])
        writer.writeheader()
        writer.writerows(rows)
    images = ImageSettings(root=str(DATA))
    return extract_features(table, "pixels", folder / "f.h5", image_settings=images)


def listed() -> list[dict[str, str]]:
    """The rows of shapes.csv, relative to the data folder."""
    with (DATA / "shapes.csv").open(encoding="utf-8", newline="") as file:
        return [{**row, "path": f"shapes/{row['path']}"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Raw pixels of the sample images, with their given split."""
    return manifest_cache(listed(), tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Maps of two layers of a small network, not pooled."""
    settings = ExtractSettings(layer=("features.2", "features.12.cat"), pool="none", input_size=64)
    out = tmp_path_factory.mktemp("two") / "f.h5"
    return extract_features(DATA / "shapes", "squeezenet1_1@random", out, settings)


def test_the_given_split_is_scored_part_by_part(given: FeatureCache) -> None:
    _, result = train_head(given, "linear", **QUICK)
    assert {name: scores.n for name, scores in result.scores.items()} == {
        "train": 18,
        "val": 6,
        "test": 12,
    }
    assert result.conditions["split"] == {"origin": "as given", "train": 18, "val": 6, "test": 12}


@pytest.mark.parametrize("head", ["linear", "mlp", "sklearn-logistic"])
def test_the_result_is_json_without_nan(given: FeatureCache, head: str, tmp_path: Path) -> None:
    options = {} if head == "sklearn-logistic" else QUICK
    _, result = train_head(given, head, **options)
    result.save(tmp_path / "result.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == json.loads(json.dumps(result.to_dict()))
    assert len(result.curves) == (0 if head == "sklearn-logistic" else 8)


def test_a_random_split_holds_every_row_once_and_every_class_in_each_part(
    given: FeatureCache,
) -> None:
    settings = TrainSettings(split="random", val=0.25, test=0.25, group="none")
    _, result = train_head(given, "linear", settings, **QUICK)
    assert sum(scores.n for scores in result.scores.values()) == 36
    for scores in result.scores.values():
        assert all(row["images"] > 0 for row in scores.per_class)


def test_without_a_test_share_there_are_no_test_scores(given: FeatureCache) -> None:
    _, result = train_head(given, "linear", TrainSettings(split="random"), **QUICK)
    assert set(result.scores) == {"train", "val"}


def test_without_validation_there_is_no_validation_loss(given: FeatureCache) -> None:
    settings = TrainSettings(split="random", val=0)
    _, result = train_head(given, "linear", settings, **QUICK)
    assert set(result.scores) == {"train"}
    assert "val_loss" not in result.curves[0]


@pytest.mark.parametrize("head", ["linear", "mlp", "sklearn-logistic"])
def test_test_rows_take_no_part_in_fitting(given: FeatureCache, head: str, tmp_path: Path) -> None:
    # The same training and validation pictures; every test picture is another one, mislabelled.
    rows = listed()
    names = ["circle", "square", "triangle"]
    tests = [row for row in rows if row["split"] == "test"]
    others = sorted((DATA / "formats").glob("*.png")) + sorted((DATA / "formats").glob("*.jpg"))
    for number, (row, other) in enumerate(zip(tests, others, strict=False)):
        row["path"] = f"formats/{other.name}"
        row["label"] = names[number % 3]
    options = {} if head == "sklearn-logistic" else QUICK
    first, one = train_head(given, head, **options)
    second, two = train_head(manifest_cache(rows, tmp_path), head, **options)
    assert two.scores["test"].confusion.tolist() != one.scores["test"].confusion.tolist()
    assert two.curves == one.curves
    for part in ("train", "val"):
        assert two.scores[part].to_dict() == one.scores[part].to_dict()
    for name, array in first.head.state().items():
        assert np.array_equal(array, second.head.state()[name]), name


def test_the_same_seed_gives_the_same_result(given: FeatureCache) -> None:
    settings = TrainSettings(split="random", test=0.2, seed=4)
    first, second = (train_head(given, "linear", settings, **QUICK)[1] for _ in range(2))
    assert first.curves == second.curves
    assert first.to_dict()["scores"] == second.to_dict()["scores"]
    assert first.conditions["options"]["seed"] == 4


def test_an_option_of_the_head_wins_over_the_seed_of_the_run(given: FeatureCache) -> None:
    _, result = train_head(given, "linear", TrainSettings(seed=4), seed=7, **QUICK)
    assert result.conditions["options"]["seed"] == 7


def test_rows_without_features_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = listed()
    rows[0]["path"], rows[-1]["path"] = "broken/truncated.jpg", "broken/nothing.jpg"
    cache = manifest_cache(rows, tmp_path)
    lost = [rows[0]["split"], rows[-1]["split"]]
    classifier, result = train_head(cache, "linear", **QUICK)
    expected = {"train": 18, "val": 6, "test": 12}
    assert {name: scores.n for name, scores in result.scores.items()} == {
        name: count - lost.count(name) for name, count in expected.items()
    }
    assert np.isfinite(classifier.head.state()["0.weight"]).all()
    assert "2 labelled images have no features" in caplog.text


def test_a_class_absent_from_training_is_named(tmp_path: Path) -> None:
    rows = [row for row in listed() if row["split"] != "train" or row["label"] != "square"]
    with pytest.raises(SplitError, match="No training image belongs to square"):
        train_head(manifest_cache(rows, tmp_path), "linear", **QUICK)


def test_unlabelled_images_cannot_be_trained_on(tmp_path: Path) -> None:
    source = open_images(DATA / "shapes")
    bare = replace(source, table=replace(source.table, labels=None, classes=()))
    cache = extract_features(bare, "pixels", tmp_path / "f.h5")
    with pytest.raises(SplitError, match="label"):
        train_head(cache, "linear", **QUICK)


def test_several_layers_ask_for_one(two_layers: FeatureCache) -> None:
    with pytest.raises(LayerError, match=r"features\.2, features\.12\.cat; say which"):
        train_head(two_layers, "linear", **QUICK)


def test_maps_are_trained_on_whole(two_layers: FeatureCache) -> None:
    shape = two_layers.layers["features.12.cat"]
    assert len(shape) == 3
    settings = TrainSettings(layer="features.12")
    classifier, result = train_head(two_layers, "linear", settings, **QUICK)
    assert result.conditions["layer"] == classifier.layer == "features.12.cat"
    assert result.conditions["dimensions"] == np.prod(shape)
    proba = classifier.predict_features(two_layers.features("features.12.cat"))
    assert proba.shape == (36, 3)


def test_a_path_is_as_good_as_an_open_cache(given: FeatureCache) -> None:
    _, one = train_head(given, "linear", **QUICK)
    _, two = train_head(str(given.path), "linear", **QUICK)
    assert one.curves == two.curves


def test_hidden_layers_count_among_the_parameters(given: FeatureCache) -> None:
    _, linear = train_head(given, "linear", **QUICK)
    _, mlp = train_head(given, "mlp", hidden=(7,), **QUICK)
    assert linear.parameters == 3072 * 3 + 3
    assert mlp.parameters == 3072 * 7 + 7 + 7 * 3 + 3
    assert mlp.conditions["options"]["hidden"] == [7]


def test_an_option_of_another_head_is_refused(given: FeatureCache) -> None:
    with pytest.raises(HeadError, match="'hidden'"):
        train_head(given, "linear", hidden=(7,))
