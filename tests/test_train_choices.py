"""Stage two where it chooses: folds, layers, label budgets, several labels, calibration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_sweep import NAMES, clouds, made

from featpipe.budget import budget_curve
from featpipe.cache import FeatureCache
from featpipe.calibration import apply_temperature, confidence_threshold, fit_temperature
from featpipe.classifier import Classifier
from featpipe.errors import (
    ClassifierError,
    FeatpipeError,
    HeadError,
    LayerError,
    SettingsError,
    SplitError,
)
from featpipe.extract import extract_features
from featpipe.heads import make_head
from featpipe.images import open_images
from featpipe.metrics import MultilabelScores, compare_predictions
from featpipe.result import Result
from featpipe.settings import TrainSettings
from featpipe.split import save_split
from featpipe.targets import targets_of
from featpipe.train import train_head

DATA = Path(__file__).parents[1] / "data"
PARTS = ["train"] * 90 + ["val"] * 45 + ["test"] * 45
CPU: dict[str, Any] = {"device": "cpu"}


@pytest.fixture(scope="module")
def blurred(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Three classes that overlap, divided in a given split."""
    features, names = clouds(180, spread=1.8)
    return made(tmp_path_factory.mktemp("choices") / "f.h5", {"only": features}, names, PARTS)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Images of any of three labels, 10, 9 and x, or none; each has features of its own."""
    rng = np.random.default_rng(0)
    truth = rng.random((160, 3)) < 0.4
    features = np.hstack([3.0 * truth, np.zeros((160, 3))]) + rng.normal(size=(160, 6))
    names = ["|".join(np.array(["x", "9", "10"])[row]) or "|" for row in truth]
    return made(tmp_path_factory.mktemp("several") / "f.h5", {"only": features}, names)


def document(result: Result) -> dict[str, Any]:
    """The result as JSON, without NaN, and without what differs from run to run."""
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    for one in (found, *(found["sweep"] or {"candidates": []})["candidates"]):
        del one["seconds"]
    return found  # type: ignore[no-any-return]


RUNS: list[tuple[str, dict[str, Sequence[Any]], dict[str, Any]]] = [
    ("linear", {"lr": [0.003, 0.03]}, {"epochs": 6}),
    ("logistic", {"C": [0.01, 1.0]}, {}),
    ("knn", {"k": [1, 9]}, {}),
    ("lda", {"shrinkage": ["auto", 0.5]}, {}),
    ("sklearn:svm.SVC", {"C": [0.1, 1.0]}, {}),
]


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize(("head", "grid", "options"), RUNS)
def test_test_rows_change_nothing_but_their_own_scores(
    blurred: FeatureCache,
    tmp_path: Path,
    head: str,
    grid: Mapping[str, Sequence[Any]],
    options: dict[str, Any],
    folds: int,
) -> None:
    features, names = blurred.features("only").copy(), list(clouds(180)[1])
    features[135:] = 100 * np.random.default_rng(1).normal(size=(45, 8))
    names[135:] = names[136:] + names[135:136]
    other = made(tmp_path / "f.h5", {"only": features}, names, PARTS)
    settings = TrainSettings(folds=folds, min_precision=0.5, device="cpu")
    (first, one), (second, two) = (
        train_head(cache, head, settings, grid, **options) for cache in (blurred, other)
    )
    assert one.scores["test"].to_dict() != two.scores["test"].to_dict()
    assert one.sweep is not None
    assert two.sweep is not None
    assert document(one)["sweep"] == document(two)["sweep"]
    assert one.curves == two.curves
    assert first.temperature == second.temperature != 1
    assert first.threshold == second.threshold
    assert first.threshold is not None
    for part in set(one.scores) - {"test"}:
        assert one.scores[part].to_dict() == two.scores[part].to_dict()
    assert first.head.state().keys() == second.head.state().keys()
    for name, array in first.head.state().items():
        assert np.array_equal(array, second.head.state()[name]), name


@pytest.mark.parametrize("folds", [0, 3])
def test_the_chosen_candidate_is_fitted_on_all_training_rows(
    blurred: FeatureCache, folds: int
) -> None:
    settings = TrainSettings(folds=folds, device="cpu")
    classifier, result = train_head(blurred, "logistic", settings, {"C": [1e-4, 0.01, 100.0]})
    assert result.sweep is not None
    assert result.split is not None
    train = result.split.train
    assert len(train) == (135 if folds else 90)
    labels, X = blurred.table.labels, blurred.features("only")
    assert labels is not None
    by_hand = make_head("logistic", {**result.sweep.chosen.options, **CPU})
    by_hand.fit(X[train], labels[train])
    for name, array in by_hand.state().items():
        assert classifier.head.state()[name] == pytest.approx(array, rel=1e-4, abs=1e-6)
    assert result.conditions["options"]["C"] == result.sweep.chosen.options["C"]


def test_given_validation_joins_training_where_there_are_folds_and_a_test_part(
    blurred: FeatureCache,
) -> None:
    _, result = train_head(blurred, "lda", TrainSettings(folds=3))
    assert {name: part.n for name, part in result.scores.items()} == {
        "train": 135,
        "folds": 135,
        "test": 45,
    }
    assert result.conditions["split"]["folds"] == 3


def test_given_validation_is_the_test_where_there_are_folds_and_no_test_part(
    tmp_path: Path,
) -> None:
    features, names = clouds(90, spread=1.5)
    cache = made(tmp_path / "f.h5", {"only": features}, names, ["train"] * 60 + ["val"] * 30)
    _, result = train_head(cache, "lda", TrainSettings(folds=3))
    assert result.split is not None
    assert result.split.test.tolist() == list(range(60, 90))
    assert result.calibration["fitted_on"] == "folds"
    assert list(result.scores) == ["train", "folds", "test"]
    assert "validation is the test" in result.conditions["split"]["origin"]


def test_scores_of_folds_are_of_fits_that_have_not_seen_the_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    names = [NAMES[code] for code in rng.permutation(np.arange(120) % 2)]
    cache = made(tmp_path / "f.h5", {"only": rng.normal(size=(120, 6))}, names)
    _, result = train_head(cache, "knn", TrainSettings(folds=4, device="cpu"), k=1)
    assert result.scores["train"].accuracy == 1
    assert 0.3 < result.scores["folds"].accuracy < 0.7
    assert result.scores["folds"].n == 120


def test_all_layers_are_tried_and_the_one_with_the_signal_is_kept(tmp_path: Path) -> None:
    features, names = clouds(90, spread=0.5)
    noise = np.random.default_rng(1).normal(size=(90, 5))
    cache = made(tmp_path / "f.h5", {"noise": noise, "signal": features, "more": noise}, names)
    settings = TrainSettings(test=0.3, device="cpu")
    classifier, result = train_head(cache, "logistic", settings, layers=("all",))
    assert classifier.layer == result.conditions["layer"] == "signal"
    assert result.sweep is not None
    assert [one.layer for one in result.sweep.candidates] == ["noise", "signal", "more"]
    assert result.scores["test"].accuracy > 0.9
    assert result.conditions["dimensions"] == classifier.head.n_features_in_ == 8
    _, two = train_head(cache, "logistic", settings, layers=("more", "noise"))
    assert two.conditions["layer"] in ("more", "noise")
    assert two.scores["test"].accuracy < 0.7


def test_layer_and_layers_together_are_refused_and_an_unknown_layer_is_named(
    blurred: FeatureCache,
) -> None:
    with pytest.raises(LayerError, match=r"layer is only, and layers names others"):
        train_head(blurred, "lda", TrainSettings(layer="only"), layers=("all",))
    with pytest.raises(LayerError, match="nothing"):
        train_head(blurred, "lda", layers=("only", "nothing"))


def test_repeats_without_anything_to_repeat_are_refused(blurred: FeatureCache) -> None:
    with pytest.raises(SettingsError, match="neither folds nor a label budget"):
        train_head(blurred, "lda", TrainSettings(repeats=3))


def test_a_saved_split_gives_the_same_result_again(blurred: FeatureCache, tmp_path: Path) -> None:
    settings = TrainSettings(
        split="random", test=0.2, folds=3, repeats=2, seed=5, min_precision=0.5, device="cpu"
    )
    grid = {"k": [1, 5, 20]}
    _, one = train_head(blurred, "knn", settings, grid, budgets=(2, None))
    assert one.split is not None
    path = tmp_path / "split.csv"
    save_split(one.split, blurred.table, path)
    # Another seed of the split: the file's stands. The budget draws by the seed, and repeats.
    again = TrainSettings(split=str(path), min_precision=0.5, seed=5, repeats=2, device="cpu")
    _, two = train_head(blurred, "knn", again, grid, budgets=(2, None))
    first, second = document(one), document(two)
    for found in (first, second):
        del found["conditions"]["split"]["origin"], found["conditions"]["machine"]
    assert first == second


def test_a_path_is_as_good_as_an_open_cache(blurred: FeatureCache) -> None:
    settings = TrainSettings(folds=3, repeats=2, device="cpu")
    seen: list[list[tuple[int, int]]] = [[], []]
    results = [
        train_head(
            cache, "knn", settings, {"k": [1, 5]}, ("all",),
            lambda done, total, seen=seen[place]: seen.append((done, total)),
            (2, None), ("lda",), temperature=0.2,
        )[1]
        for place, cache in enumerate((blurred, blurred.path))
    ]  # fmt: skip
    assert document(results[0]) == document(results[1])
    assert results[1].budget is not None
    assert list(results[1].paired) == ["lda"]
    assert seen[0] == seen[1] != []


def test_a_budget_is_of_the_chosen_candidate_and_layer(tmp_path: Path) -> None:
    features, names = clouds(150, spread=1.8)
    noise = np.random.default_rng(1).normal(size=(150, 5))
    cache = made(tmp_path / "f.h5", {"noise": noise, "signal": features}, names)
    settings = TrainSettings(test=0.3, folds=3, repeats=2, device="cpu")
    _, result = train_head(
        cache, "knn", settings, {"k": [1, 3]}, ("all",), budgets=(7, None), temperature=0.5
    )
    assert result.sweep is not None
    assert result.budget is not None
    assert result.split is not None
    targets = targets_of(cache.table)

    def alone(layer: str, **options: Any) -> dict[str, Any]:
        return budget_curve(
            cache, layer, "knn", settings, options, (7, None), targets, result.split
        ).to_dict()  # type: ignore[arg-type]

    assert result.sweep.chosen.layer == "signal"
    chosen = {"temperature": 0.5, **result.sweep.chosen.options}
    assert result.budget.to_dict() == alone("signal", **chosen) != alone("signal")
    assert result.budget.to_dict() != alone("noise", **chosen)
    # All labelled images: what the classifier itself was fitted on.
    assert result.budget.points[-1].accuracies == [result.scores["test"].accuracy]


def test_paired_tests_are_of_the_rows_and_probabilities_that_were_scored(
    blurred: FeatureCache,
) -> None:
    labels = blurred.table.labels
    assert labels is not None
    for settings, part in (
        (TrainSettings(device="cpu"), "test"),
        (TrainSettings(split="random", val=0.3, device="cpu"), "val"),
        (TrainSettings(split="random", folds=3, device="cpu"), "folds"),
    ):
        classifier, result = train_head(blurred, "knn", settings, against=("lda", "centroid"), k=3)
        assert list(result.paired) == ["lda", "centroid"]
        assert list(result.scores)[-1] == part
        assert result.split is not None
        rows = result.split.train if part == "folds" else result.split.parts()[part]
        for name, found in result.paired.items():
            _, other = train_head(blurred, name, settings)
            expected = compare_predictions(labels[rows], result.proba[part], other.proba[part])
            assert found == expected
            gap = result.scores[part].accuracy - other.scores[part].accuracy
            assert found.accuracy_difference.value == pytest.approx(gap)
        assert json.loads(json.dumps(classifier.result))["paired"] == document(result)["paired"]


def test_a_head_that_cannot_be_told_from_itself(blurred: FeatureCache) -> None:
    _, result = train_head(blurred, "lda", against=("lda",))
    assert result.paired["lda"].p_value == 1
    assert result.paired["lda"].accuracy_difference == (0, 0, 0)


@pytest.mark.parametrize("head", ["linear", "mlp", "logistic"])
def test_several_labels_are_learnt_each_by_itself(
    several: FeatureCache, tmp_path: Path, head: str
) -> None:
    options = {} if head == "logistic" else {"epochs": 60, "lr": 0.02}
    settings = TrainSettings(test=0.25, separator="|", device="cpu")
    classifier, result = train_head(several, head, settings, **options)
    assert classifier.classes == ("10", "9", "x")
    assert classifier.multilabel
    scores = result.scores["test"]
    assert isinstance(scores, MultilabelScores)
    assert result.split is not None
    rows = result.split.test
    names = [several.table.classes[label] for label in several.table.labels[rows]]  # type: ignore[index]
    truth = np.array([[label in name.split("|") for label in ("10", "9", "x")] for name in names])
    assert not truth.any(axis=1).all()  # some have none of the labels
    proba = classifier.predict_features(several.features("only", rows))
    expected = average_precision_score(truth, proba, average="macro")
    assert scores.figures["average_precision"].value == pytest.approx(expected)
    assert expected > 0.9
    assert scores.accuracy == pytest.approx(((proba >= 0.5) == truth).all(axis=1).mean())
    assert proba == pytest.approx(result.proba["test"])
    document(result)
    classifier.save(tmp_path / "c.safetensors")
    loaded = Classifier.load(tmp_path / "c.safetensors")
    assert loaded.multilabel
    assert loaded.classes == classifier.classes
    assert np.array_equal(loaded.predict_features(several.features("only", rows)), proba)


@pytest.mark.parametrize("folds", [0, 3])
def test_labels_of_test_rows_change_nothing_but_their_own_scores(
    several: FeatureCache, tmp_path: Path, folds: int
) -> None:
    codes = several.table.labels
    assert codes is not None
    names = [several.table.classes[code] for code in codes]
    parts = ["train"] * 80 + ["val"] * 40 + ["test"] * 40
    turned = [*names[:120], *reversed(names[120:])]
    settings = TrainSettings(folds=folds, separator="|", device="cpu")
    (first, one), (second, two) = (
        train_head(
            made(tmp_path / f"{place}.h5", {"only": several.features("only")}, some, parts),
            "logistic", settings, {"C": [0.001, 0.1]},
        )
        for place, some in enumerate((names, turned))
    )  # fmt: skip
    assert document(one)["sweep"] == document(two)["sweep"]
    assert first.temperature == second.temperature != 1
    for name, array in first.head.state().items():
        assert np.array_equal(array, second.head.state()[name]), name
    assert one.scores["test"].to_dict() != two.scores["test"].to_dict()


def test_several_labels_are_swept_over_folds(several: FeatureCache) -> None:
    settings = TrainSettings(test=0.25, folds=3, separator="|", device="cpu")
    _, result = train_head(several, "logistic", settings, {"C": [1e-5, 1.0]})
    assert result.sweep is not None
    assert result.sweep.metric == "average_precision"
    assert result.scores["folds"].n == result.scores["train"].n == 120
    assert document(result)["sweep"]["candidates"][0]["average_precision"] > 0.5


@pytest.mark.parametrize("head", ["knn", "ridge", "lda", "centroid", "sklearn:svm.SVC"])
def test_heads_of_one_class_an_image_refuse_several_labels_with_the_ways_out(
    several: FeatureCache, head: str
) -> None:
    with pytest.raises(HeadError, match=r"use linear, mlp or logistic, or leave the separator"):
        train_head(several, head, TrainSettings(separator="|"))


def test_what_takes_one_class_an_image_is_refused_for_several_labels(
    several: FeatureCache,
) -> None:
    settings = TrainSettings(separator="|", device="cpu")
    with pytest.raises(SplitError, match="leave the separator out"):
        train_head(several, "logistic", settings, budgets=(1, None))
    with pytest.raises(SplitError, match="paired tests"):
        train_head(several, "logistic", settings, against=("linear",))
    strict = TrainSettings(separator="|", min_precision=0.9, device="cpu")
    with pytest.raises(SplitError, match="one class an image"):
        train_head(several, "logistic", strict)


@pytest.mark.parametrize(("folds", "fitted_on"), [(0, "val"), (3, "folds")])
def test_the_temperature_is_that_of_rows_the_fit_has_not_seen_and_part_of_the_artefact(
    blurred: FeatureCache, tmp_path: Path, folds: int, fitted_on: str
) -> None:
    settings = TrainSettings(folds=folds, device="cpu")
    classifier, result = train_head(blurred, "logistic", settings, C=100.0)
    assert result.calibration["fitted_on"] == fitted_on
    assert result.split is not None
    labels, features = blurred.table.labels, blurred.features("only")
    assert labels is not None
    if folds:
        rows, raw = result.split.train, np.zeros((135, 3))
        X = (features - features[rows].mean(axis=0)) / features[rows].std(axis=0)
        for train, val in result.split.folds:
            head = make_head("logistic", {"C": 100.0, "standardize": False, **CPU})
            head.fit(X[train], labels[train])
            raw[np.isin(rows, val)] = head.predict_proba(X[val])
    else:
        rows = result.split.val
        raw = classifier.head.predict_proba(features[rows])
    expected = fit_temperature(raw, labels[rows])
    assert classifier.temperature == pytest.approx(expected, rel=1e-3)
    assert classifier.temperature > 1.05  # C=100 is too sure of itself
    assert result.calibration["n"] == len(rows)
    proba = classifier.predict_features(features)
    raw = classifier.head.predict_proba(features)
    assert proba == pytest.approx(apply_temperature(raw, classifier.temperature))
    assert np.abs(proba - raw).max() > 0.01
    assert proba[result.split.test] == pytest.approx(result.proba["test"])
    classifier.save(tmp_path / "c.safetensors")
    loaded = Classifier.load(tmp_path / "c.safetensors")
    assert loaded.temperature == classifier.temperature
    assert np.array_equal(loaded.predict_features(features), proba)


def test_reliability_is_shown_before_and_after_of_test_rows(blurred: FeatureCache) -> None:
    _, result = train_head(blurred, "logistic", TrainSettings(device="cpu"), C=100.0)
    shown = result.calibration
    assert shown["shown"] == "test"
    for part in ("before", "after"):
        assert sum(row["count"] for row in shown[part]) == 45
    assert shown["before"] != shown["after"]


@pytest.mark.parametrize("folds", [0, 3])
def test_validation_without_a_mistake_leaves_the_temperature_at_1(
    tmp_path: Path, folds: int
) -> None:
    features, names = clouds(60, spread=0.05)
    cache = made(tmp_path / "f.h5", {"only": features}, names)
    settings = TrainSettings(folds=folds, device="cpu")
    classifier, result = train_head(cache, "logistic", settings)
    assert classifier.temperature == result.calibration["temperature"] == 1


def test_without_validation_there_is_no_calibration(blurred: FeatureCache) -> None:
    settings = TrainSettings(split="random", val=0, test=0.2)
    classifier, result = train_head(blurred, "lda", settings)
    assert (classifier.temperature, classifier.threshold) == (1, None)
    assert result.calibration == {}
    strict = TrainSettings(split="random", val=0, test=0.2, min_precision=0.9)
    with pytest.raises(SplitError, match="threshold is fitted on validation rows"):
        train_head(blurred, "lda", strict)


def test_the_threshold_keeps_what_was_asked_on_validation_rows(
    blurred: FeatureCache, tmp_path: Path
) -> None:
    settings = TrainSettings(min_precision=0.95, device="cpu")
    classifier, result = train_head(blurred, "logistic", settings)
    labels = blurred.table.labels
    assert labels is not None
    assert result.split is not None
    rows = result.split.val
    proba = classifier.predict_features(blurred.features("only", rows))
    right = proba.argmax(axis=1) == labels[rows]
    assert classifier.threshold == confidence_threshold(proba, labels[rows], 0.95)
    assert classifier.threshold is not None
    sure = proba.max(axis=1) >= classifier.threshold
    assert right.mean() < 0.95 <= right[sure].mean()
    found = result.calibration["abstention"]
    assert found["val"] == {"coverage": sure.mean(), "precision": right[sure].mean()}
    assert {"val", "test"} <= set(found)
    classifier.save(tmp_path / "c.safetensors")
    assert Classifier.load(tmp_path / "c.safetensors").threshold == classifier.threshold


def test_a_precision_that_cannot_be_had_leaves_a_classifier_that_never_abstains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Every surest prediction is wrong: validation rows have each other's labels.
    features, names = clouds(90, spread=0.1)
    names[60:] = [NAMES[(row + 1) % 3] for row in range(60, 90)]
    cache = made(tmp_path / "f.h5", {"only": features}, names, ["train"] * 60 + ["val"] * 30)
    settings = TrainSettings(min_precision=0.9, device="cpu")
    classifier, result = train_head(cache, "logistic", settings)
    assert "right in 90.0 % of the cases: the classifier never abstains" in caplog.text
    assert classifier.threshold is None
    assert result.calibration["min_precision"] == 0.9
    assert "threshold" not in result.calibration


def test_predictions_below_the_threshold_are_not_sure(tmp_path: Path) -> None:
    cache = extract_features(DATA / "shapes", "pixels", tmp_path / "f.h5")
    settings = TrainSettings(val=0.4, device="cpu")
    trained, _ = train_head(cache, "logistic", settings)
    images = open_images(DATA / "shapes")
    confidences = [one.proba.max() for one in trained.predict(images) if one.proba is not None]
    threshold = float(np.median(confidences))
    strict = Classifier(
        trained.spec, trained.layer, trained.head_name, trained.head, trained.classes,
        threshold=threshold,
        temperature=trained.temperature,
    )  # fmt: skip
    found = [one.sure for one in strict.predict(images)]
    assert found == [confidence >= threshold for confidence in confidences]
    assert 0 < sum(found) < len(found)
    assert all(one.sure for one in trained.predict(images))


@pytest.mark.parametrize(
    ("temperature", "threshold"), [(0.0, None), (-1.0, None), (float("nan"), None), (1.0, 1.5)]
)
def test_a_file_of_an_impossible_calibration_is_refused(
    blurred: FeatureCache, tmp_path: Path, temperature: float, threshold: float | None
) -> None:
    trained, _ = train_head(blurred, "lda")
    Classifier(
        trained.spec, trained.layer, trained.head_name, trained.head, trained.classes,
        temperature=temperature, threshold=threshold,
    ).save(tmp_path / "c.safetensors")  # fmt: skip
    with pytest.raises(FeatpipeError, match=r"temperature|threshold") as caught:
        Classifier.load(tmp_path / "c.safetensors")
    assert isinstance(caught.value, ClassifierError | SettingsError)


@pytest.mark.parametrize(
    ("head", "grid"),
    [
        ("logistic", {"C": [-1.0, 1.0]}),
        ("logistic", {"C": ["abc", 1.0]}),
        ("ridge", {"alpha": [-5.0, 1.0]}),
        ("linear", {"optimizer": ["adam", "foo"]}),
        ("linear", {"lr": ["abc", 0.01]}),
        ("linear", {"weight_decay": [0, -1]}),
        ("linear", {"epochs": [0, 5]}),
        ("linear", {"seed": [0.0, 1.0]}),
        ("linear", {"batch_size": [1.5]}),
        ("linear", {"lr": [float("nan"), 0.01]}),
        ("mlp", {"dropout": [0, 2]}),
    ],
)
def test_a_value_that_the_head_refuses_is_refused_in_a_sweep(
    blurred: FeatureCache, head: str, grid: dict[str, list[Any]]
) -> None:
    with pytest.raises(FeatpipeError, match=next(iter(grid))):
        train_head(blurred, head, TrainSettings(val=0.2, **CPU), grid)


def test_another_head_need_not_reach_the_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    corners = rng.choice([-1, 1], size=(200, 2)) + 0.05 * rng.normal(size=(200, 2))
    names = ["x" if a * b > 0 else "y" for a, b in corners]
    cache = made(tmp_path / "f.h5", {"only": corners}, names)
    strict = TrainSettings(min_precision=1.0, test=0.2, device="cpu")
    _, result = train_head(cache, "knn", strict, against=("lda",), k=3)
    assert list(result.paired) == ["lda"]


def test_what_needs_held_out_rows_is_refused_before_any_fit(
    blurred: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("fitted")

    monkeypatch.setattr("featpipe.train.fit_and_score", never)
    monkeypatch.setattr("featpipe.train.run_sweep", never)
    bare = TrainSettings(split="random", val=0.0, device="cpu")
    with pytest.raises(SplitError, match="Paired tests"):
        train_head(blurred, "lda", bare, against=("centroid",))
    with pytest.raises(SplitError, match="label budget"):
        train_head(blurred, "lda", replace(bare, folds=3), budgets=(1,))


def test_a_budget_that_is_repeated_goes_with_a_paired_test(blurred: FeatureCache) -> None:
    settings = TrainSettings(test=0.2, repeats=2, device="cpu")
    _, result = train_head(blurred, "lda", settings, budgets=(1, None), against=("centroid",))
    assert result.budget is not None
    assert list(result.paired) == ["centroid"]


def test_one_class_alone_is_refused_with_folds_too(tmp_path: Path) -> None:
    features, names = clouds(60)
    cache = made(tmp_path / "f.h5", {"only": features}, ["x" for _ in names])
    for head in ("logistic", "ridge", "linear"):
        with pytest.raises(SplitError, match="only one class"):
            train_head(cache, head, TrainSettings(folds=3, device="cpu"))


@pytest.mark.parametrize("head", ["logistic", "linear"])
def test_class_weights_are_by_the_names_of_classes(blurred: FeatureCache, head: str) -> None:
    settings = TrainSettings(val=0.2, device="cpu")
    heavy = NAMES[0]
    said = []
    for weight in (1.0, 30.0):
        classifier, _ = train_head(blurred, head, settings, class_weight={heavy: weight})
        said.append(float(classifier.predict_features(blurred.features("only"))[:, 0].mean()))
    assert said[1] > said[0] + 0.05
    with pytest.raises(HeadError, match="no class 'nobody'"):
        train_head(blurred, head, settings, class_weight={"nobody": 2.0})


def test_candidates_with_other_class_weights_are_other_candidates(blurred: FeatureCache) -> None:
    grid = {"class_weight": [{NAMES[0]: 1.0}, {NAMES[0]: 40.0}]}
    _, result = train_head(blurred, "logistic", TrainSettings(folds=3, device="cpu"), grid)
    assert result.sweep is not None
    first, second = result.sweep.candidates
    assert first.folds["log_loss"] != second.folds["log_loss"]


def test_a_candidate_that_scikit_learn_refuses_is_noted(blurred: FeatureCache) -> None:
    grid = {"n_neighbors": [3, 5000]}
    settings = TrainSettings(folds=3, device="cpu")
    _, result = train_head(blurred, "sklearn:neighbors.KNeighborsClassifier", settings, grid)
    assert result.sweep is not None
    assert "n_neighbors" in result.sweep.candidates[1].note
    assert result.sweep.best == 0


def test_numpy_values_can_be_swept_and_saved(blurred: FeatureCache, tmp_path: Path) -> None:
    grid = {"k": np.array([1, 5])}
    classifier, result = train_head(blurred, "knn", TrainSettings(val=0.2, device="cpu"), grid)
    result.save(tmp_path / "r.json")
    classifier.save(tmp_path / "c.safetensors")
    assert Classifier.load(tmp_path / "c.safetensors").head.get_params()["k"] in (1, 5)


def test_a_validation_loss_without_end_is_a_divergence(blurred: FeatureCache) -> None:
    settings = TrainSettings(val=0.2, device="cpu")
    with pytest.raises(HeadError, match="no longer finite"):
        train_head(blurred, "linear", settings, lr=1e37, optimizer="sgd", epochs=2, batch_size=1000)


@pytest.mark.parametrize("memory", [float("nan"), float("inf"), 0.0])
def test_memory_is_a_number(memory: float) -> None:
    with pytest.raises(SettingsError, match="memory"):
        TrainSettings(memory=memory)
