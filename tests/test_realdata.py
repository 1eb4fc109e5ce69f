"""What the whole must reach on real photographs with real weights."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from leaks import judge, plant
from sklearn.metrics import average_precision_score

from featpipe.backbones import load_backbone
from featpipe.cache import FeatureCache
from featpipe.compare import compare_routes
from featpipe.decode import decode
from featpipe.duplicates import find_duplicates
from featpipe.extract import extract_features
from featpipe.images import open_images
from featpipe.results import Results
from featpipe.scratch import train_from_scratch
from featpipe.settings import (
    CompareSettings,
    ExtractSettings,
    ImageSettings,
    ScratchSettings,
    TrainSettings,
)
from featpipe.split import split_rows
from featpipe.suspects import label_scores, list_suspects
from featpipe.train import train_head

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def mobilenet(shared: Path) -> str:
    return f"mobilenet_v2@{shared / 'weights' / 'mobilenet_v2.pth'}"


@pytest.fixture(scope="module")
def hymenoptera(
    shared: Path, mobilenet: str, tmp_path_factory: pytest.TempPathFactory
) -> FeatureCache:
    out = tmp_path_factory.mktemp("hymenoptera") / "f.h5"
    return extract_features(shared / "data" / "hymenoptera", mobilenet, out)


@pytest.fixture(scope="module")
def flowers(shared: Path, mobilenet: str, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    out = tmp_path_factory.mktemp("flowers") / "f.h5"
    return extract_features(shared / "data" / "flowers", mobilenet, out)


def test_squeezenet_gives_the_published_outputs(shared: Path) -> None:
    weights = shared / "weights" / "squeezenet1_1.pth"
    backbone = load_backbone("squeezenet1_1", str(weights))
    layers = backbone.layers()
    cut = backbone.cut(layers, [layers.resolve("flatten")])
    golden = shared / "weights" / "squeezenet1_1_golden"
    for number in range(3):
        inputs = torch.from_numpy(np.load(golden / f"input_{number}.npy"))
        expected = np.load(golden / f"output_{number}.npy")
        with torch.inference_mode():
            (found,) = cut(inputs)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_a_linear_head_on_hymenoptera(hymenoptera: FeatureCache) -> None:
    _, result = train_head(hymenoptera, "linear")
    assert {name: scores.n for name, scores in result.scores.items()} == {"train": 245, "val": 153}
    assert result.scores["val"].accuracy >= 0.94


def test_a_linear_head_on_flowers(flowers: FeatureCache) -> None:
    accuracies = [
        train_head(flowers, "linear", TrainSettings(seed=seed))[1].scores["val"].accuracy
        for seed in range(3)
    ]
    assert np.mean(accuracies) >= 0.89


@pytest.mark.parametrize(("name", "below"), [("hymenoptera", 0.80), ("flowers", 0.75)])
def test_the_cnn_from_scratch_is_well_below(shared: Path, name: str, below: float) -> None:
    source = open_images(shared / "data" / name)
    train = TrainSettings()
    split = split_rows(source.table, train, np.ones(len(source), bool))
    settings = ScratchSettings(epochs=5, input_size=96)
    _, result = train_from_scratch(source, split, settings, train)
    chance = 1 / len(source.table.classes)
    assert chance * 0.8 < result.scores["val"].accuracy < below


def test_the_gif_among_the_photographs_is_an_image_like_any_other(
    shared: Path, hymenoptera: FeatureCache
) -> None:
    row = hymenoptera.table.ids.tolist().index("train/ants/imageNotFound.gif")
    assert hymenoptera.ok[row]
    picture = decode((shared / "data" / "hymenoptera" / hymenoptera.table.ids[row]).read_bytes())
    assert picture.size == (300, 300)
    assert hymenoptera.status_counts() == {"ok": 398}


def test_vehicles_keep_their_groups_together(shared: Path, mobilenet: str, tmp_path: Path) -> None:
    folder = shared / "data" / "emergency"
    columns = ImageSettings(
        path_column="image_names",
        label_column="emergency_or_not",
        group_column="source_image",
        root=str(folder / "images"),
    )
    with extract_features(
        folder / "emergency_train.csv", mobilenet, tmp_path / "v.h5", image_settings=columns
    ) as cache:
        assert cache.table.class_counts() == {"0": 119, "1": 233}
        assert cache.table.groups is not None
        settings = TrainSettings(test=0.2)
        split = split_rows(cache.table, settings, cache.ok)
        parts = [set(cache.table.groups[rows]) for rows in split.parts().values()]
        assert len(set.union(*parts)) == sum(map(len, parts))
        _, result = train_head(cache, "sklearn-logistic", settings)
    assert result.scores["test"].accuracy > 0.7


def test_malaria_cells_run_with_patients_apart(shared: Path, tmp_path: Path) -> None:
    settings = ExtractSettings(input_size=64)
    weights = shared / "weights" / "squeezenet1_1.pth"
    folder = shared / "data" / "malaria"
    with extract_features(folder, f"squeezenet1_1@{weights}", tmp_path / "m.h5", settings) as cache:
        assert len(cache) == 5006
        assert cache.ok.all()
        patients = TrainSettings(test=0.2, group=r"([^/]+?)(?:_IMG_|ThinF)")
        _, result = train_head(cache, "sklearn-logistic", patients)
    assert result.scores["test"].accuracy > 0.75


def test_compare_on_real_photographs(shared: Path, mobilenet: str, tmp_path: Path) -> None:
    comparison = compare_routes(
        shared / "data" / "hymenoptera",
        [mobilenet],
        ["linear", "sklearn-logistic"],
        tmp_path,
        settings=CompareSettings(folds=5),
        scratch_settings=ScratchSettings(epochs=3, input_size=64),
    )
    assert Results.load(tmp_path) == comparison.results
    found = {route.name: route for route in comparison.results.routes}
    assert len(found) == 5
    best = comparison.results.verdict.best
    assert best is not None
    assert best.startswith("mobilenet_v2")
    beaten = found["CNN from scratch"].difference
    assert beaten is not None
    assert beaten.sure
    assert beaten.value < -0.1
    assert "beats CNN from scratch by" in comparison.results.verdict.sentences[0]
    assert found[best].test is not None  # the given validation images select nothing
    assert found[best].test["n"] == 153


def test_predict_labels_photographs_from_the_command_line(
    shared: Path, hymenoptera: FeatureCache, tmp_path: Path
) -> None:
    classifier, _ = train_head(hymenoptera, "linear")
    classifier.save(tmp_path / "c.safetensors")
    images = shared / "data" / "hymenoptera" / "val"
    command = [sys.executable, "-m", "featpipe", "predict", str(tmp_path / "c.safetensors"),
               str(images), "--json", "--grid", str(tmp_path / "grid.png")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictions = json.loads(done.stdout)["predictions"]
    right = [row["label"] == row["true"] for row in predictions]
    assert len(right) == 153
    assert np.mean(right) >= 0.94
    assert (tmp_path / "grid.png").stat().st_size > 100_000


def test_planted_copies_of_flowers_are_found_and_kept_on_one_side(
    shared: Path, mobilenet: str, flowers: FeatureCache, tmp_path: Path
) -> None:
    plant(shared / "data" / "flowers", tmp_path, seed=7)
    settings = ExtractSettings(reuse=(str(flowers.path),))
    cache = extract_features(tmp_path / "images", mobilenet, tmp_path / "f.h5", settings)
    found = find_duplicates(cache)
    hits, _, alarms, _ = judge(cache, found)
    assert hits >= 45
    assert len(alarms) <= 5
    assert sum("split" in pair.across for pair in found.pairs) >= 45
    for policy in ("group", "drop"):
        copies = found.copies(policy)
        split = split_rows(cache.table, TrainSettings(val=0.0), cache.ok, copies=copies)
        assert not set(found.numbers[split.train]) & set(found.numbers[split.test])
        assert len(split.test) == 50
        assert len(split.train) <= 1200 - hits


def test_planted_label_errors_of_flowers_come_first(flowers: FeatureCache) -> None:
    whole, random = flowers.table, np.random.default_rng(7)
    assert whole.labels is not None
    wrong = random.choice(1200, 60, replace=False)
    labels = whole.labels.copy()
    labels[wrong] = (labels[wrong] + random.integers(1, 5, 60)) % 5
    flowers.table = replace(whole, labels=labels)
    try:
        settings = TrainSettings(folds=5, val=0.0, select="log_loss")
        grid = {"C": [1e-3, 3e-3, 1e-2]}
        _, result = train_head(flowers, "logistic", settings, sweep=grid)
    finally:
        flowers.table = whole
    assert result.sweep is not None
    rows, proba = result.sweep.held_out
    scores = label_scores(labels[rows], proba)
    assert average_precision_score(np.isin(rows, wrong), scores) >= 0.8
    listed = [suspect.row for suspect in list_suspects(rows, labels[rows], proba)]
    assert len(set(listed[:30]) & set(wrong.tolist())) >= 25
