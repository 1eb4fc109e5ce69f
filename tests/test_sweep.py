"""Choosing among candidates: what each fold's figures are, and which candidate wins."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
)
from sklearn.preprocessing import StandardScaler

from featpipe import sweep
from featpipe.cache import FeatureCache
from featpipe.cache_assemble import table_columns, write_cache
from featpipe.errors import HeadError, SplitError
from featpipe.heads import make_head
from featpipe.settings import TrainSettings
from featpipe.spec import Spec
from featpipe.split import Split, split_rows
from featpipe.sweep import Sweep, run_sweep, validation_figures
from featpipe.table import make_table, text_column
from featpipe.targets import targets_of

NAMES = ("ant", "bee", "cow")
QUICK = {"epochs": 6, "lr": 0.01}


def made(
    path: Path,
    features: Mapping[str, np.ndarray],
    labels: Sequence[str | None],
    splits: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> FeatureCache:
    """A cache of made-up features, by layer."""
    rows = len(labels)
    table = make_table([f"{row:04d}.png" for row in range(rows)], labels, splits, groups)
    stored = {name: values.astype(np.float32) for name, values in features.items()}
    spec = Spec(
        backbone="import:made", weights="none", seed=0,
        weights_digests=dict.fromkeys(stored, "00"), random_weights=False,
        layers=dict.fromkeys(stored, "none"), preprocessing={}, decoder="none",
        precision="float32", dtype="float32",
    )  # fmt: skip
    columns = table_columns(
        table, np.zeros((rows, 16), np.uint8), np.zeros(rows, np.uint8), text_column([""] * rows)
    )
    write_cache(
        path,
        spec,
        {name: values.shape[1:] for name, values in stored.items()},
        columns,
        lambda layer, start, stop: stored[layer][start:stop],
        {},
        time.perf_counter(),
    )
    return FeatureCache.open(path)


def clouds(
    rows: int, spread: float = 1.0, classes: int = 3, width: int = 8, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Features around one centre a class, and the classes' names."""
    rng = np.random.default_rng(seed)
    codes = np.arange(rows) % classes
    centres = 3 * np.eye(classes, width)
    return centres[codes] + spread * rng.normal(size=(rows, width)) + 5, [NAMES[c] for c in codes]


def swept(
    cache: FeatureCache,
    head: str,
    grid: Mapping[str, Sequence[Any]],
    settings: TrainSettings,
    layers: Sequence[str] = ("only",),
    **options: Any,
) -> tuple[Sweep, Split]:
    """What `run_sweep` finds, and the split it has used."""
    targets = targets_of(cache.table, settings.separator)
    split = split_rows(cache.table, settings, cache.ok, strata=targets.strata)
    return run_sweep(cache, head, settings, options, grid, layers, targets, split), split


@pytest.fixture(scope="module")
def blurred(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Three classes that overlap."""
    features, names = clouds(90, spread=1.8)
    return made(tmp_path_factory.mktemp("sweep") / "blurred.h5", {"only": features}, names)


FOLDS = TrainSettings(folds=3, test=0.2, device="cpu")


@pytest.mark.parametrize(
    ("head", "grid", "options"),
    [
        ("linear", {"lr": [0.003, 0.03]}, {"epochs": 6}),
        ("mlp", {"hidden": [(4,), (3, 2)]}, {**QUICK, "dropout": 0.0}),
        ("logistic", {"C": [0.001, 0.1, 10.0]}, {}),
        ("knn", {"k": [1, 5, 20]}, {}),
        ("knn", {"temperature": [0.07, 0.5], "k": [3, 4]}, {"standardize": True}),
        ("ridge", {"alpha": [0.1, 100.0, None]}, {}),
        ("lda", {"shrinkage": ["auto", 0.0, 0.9]}, {}),
        ("centroid", {"standardize": [True, False]}, {}),
    ],
)
def test_figures_of_a_fold_are_those_of_a_head_fitted_on_it_by_hand(
    blurred: FeatureCache, head: str, grid: dict[str, list[Any]], options: dict[str, Any]
) -> None:
    found, split = swept(blurred, head, grid, FOLDS, **options)
    raw, labels = blurred.features("only"), blurred.table.labels
    assert labels is not None
    standard = StandardScaler().fit(raw[split.train]).transform(raw).astype(np.float32)
    assert len(found.candidates) == np.prod([len(values) for values in grid.values()])
    for candidate in found.candidates:
        for fold, (train, val) in enumerate(split.folds):
            fitted = make_head(head, {**options, **candidate.options})
            if "device" in fitted.get_params():
                fitted.set_params(device="cpu")
            X = standard if fitted.get_params()["standardize"] else raw
            fitted.set_params(standardize=False)
            fitted.fit(X[train], labels[train], validation=(X[val], labels[val]))
            proba = fitted.predict_proba(X[val])
            expected = {
                "accuracy": accuracy_score(labels[val], proba.argmax(axis=1)),
                "balanced_accuracy": balanced_accuracy_score(labels[val], proba.argmax(axis=1)),
                "log_loss": log_loss(labels[val], proba, labels=range(3)),
            }
            for name, value in expected.items():
                assert candidate.folds[name][fold] == pytest.approx(value, rel=1e-3, abs=1e-9)
        assert candidate.test_share == pytest.approx(0.5)
        assert len(candidate.folds["accuracy"]) == 3


@pytest.mark.parametrize("select", ["accuracy", "balanced_accuracy", "log_loss"])
def test_the_best_mean_over_the_folds_is_chosen(blurred: FeatureCache, select: str) -> None:
    settings = TrainSettings(folds=3, repeats=2, select=select, device="cpu")
    grid = {"k": [1, 2, 7, 40], "temperature": [0.02, 0.07, 1.0]}
    found, _ = swept(blurred, "knn", grid, settings)
    means = [np.mean(candidate.folds[select]) for candidate in found.candidates]
    best = min(means) if select == "log_loss" else max(means)
    assert found.metric == select
    assert means[found.best] == pytest.approx(best, abs=1e-12)
    assert best != means[0]  # nor is it the first anyway
    assert found.head.get_params().items() >= found.chosen.options.items()


def test_figures_that_choose_differ_where_classes_are_uneven(tmp_path: Path) -> None:
    features, _ = clouds(240, spread=2.0, classes=2)
    kept = np.flatnonzero((np.arange(240) % 2 == 0) | (np.arange(240) % 12 == 1))
    names = [NAMES[row % 2] for row in kept]
    cache = made(tmp_path / "f.h5", {"only": features[kept]}, names)
    chosen = {}
    for select in ("accuracy", "balanced_accuracy"):
        settings = TrainSettings(folds=4, select=select, device="cpu")
        found, _ = swept(cache, "logistic", {"class_weight": [None, "balanced"]}, settings)
        chosen[select] = found.chosen.options["class_weight"]
    assert chosen == {"accuracy": None, "balanced_accuracy": "balanced"}


@pytest.mark.parametrize("penalties", [[0.01, 0.1, 1.0], [1.0, 0.1, 0.01]])
def test_of_equal_accuracies_the_lower_log_loss_is_chosen(
    tmp_path: Path, penalties: list[float]
) -> None:
    features, names = clouds(60, spread=0.1)
    cache = made(tmp_path / "f.h5", {"only": features}, names)
    found, _ = swept(cache, "logistic", {"C": penalties}, FOLDS)
    assert {one.figure("accuracy").value for one in found.candidates} == {1.0}
    assert found.chosen.options == {"C": 1.0}


def test_of_equal_candidates_the_first_is_chosen(blurred: FeatureCache) -> None:
    # One neighbour has one vote, whatever the temperature.
    found, _ = swept(blurred, "knn", {"temperature": [0.5, 0.07, 0.1]}, FOLDS, k=1)
    assert len({json.dumps(one.folds) for one in found.candidates}) == 1
    assert found.best == 0


def test_without_folds_the_validation_rows_choose(blurred: FeatureCache) -> None:
    settings = TrainSettings(val=0.3, test=0.2, device="cpu")
    found, split = swept(blurred, "knn", {"k": [1, 9]}, settings)
    assert found.folds == 1
    assert found.held_out[0].tolist() == split.val.tolist()
    for one in found.candidates:
        assert len(one.folds["accuracy"]) == 1
        assert one.figure("accuracy").low is None
        assert one.to_dict()["spread"]["accuracy"] is None


@pytest.mark.parametrize("kept", [0, sweep.MOST_KEPT])
@pytest.mark.parametrize("repeats", [1, 3])
def test_each_training_row_is_held_out_once_by_a_fit_that_has_not_seen_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats: int, kept: int
) -> None:
    monkeypatch.setattr(sweep, "MOST_KEPT", kept)
    # Labels are noise: a nearest neighbour that has seen a row knows it, any other guesses.
    rng = np.random.default_rng(1)
    names = [NAMES[code] for code in rng.permutation(np.arange(120) % 2)]
    cache = made(tmp_path / "f.h5", {"only": rng.normal(size=(120, 6))}, names)
    settings = TrainSettings(folds=4, repeats=repeats, test=0.2, device="cpu")
    found, split = swept(cache, "knn", {"k": [1]}, settings)
    rows, proba = found.held_out
    labels = cache.table.labels
    assert labels is not None
    assert rows.tolist() == split.train.tolist()
    assert proba.sum(axis=1) == pytest.approx(1)
    assert 0.3 < (proba.argmax(axis=1) == labels[rows]).mean() < 0.7
    X = cache.features("only")
    for train, val in split.folds[:4]:
        by_hand = make_head("knn", {"k": 1, "device": "cpu"}).fit(X[train], labels[train])
        assert proba[np.isin(rows, val)] == pytest.approx(by_hand.predict_proba(X[val]))
    assert found.folds == 4 * repeats


@pytest.mark.parametrize("kept", [0, sweep.MOST_KEPT])
@pytest.mark.parametrize("order", [[True, False], [False, True]])
def test_rows_held_out_are_standardised_only_if_the_chosen_head_wants_that(
    tmp_path: Path, order: list[bool], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MOST_KEPT", kept)
    features, names = clouds(120, spread=0.8)
    noise = np.random.default_rng(0).normal(size=(120, 60))
    cache = made(tmp_path / "f.h5", {"only": np.hstack([50 * (features - 5), noise])}, names)
    settings = TrainSettings(folds=3, device="cpu")
    found, _ = swept(cache, "knn", {"standardize": order}, settings, k=5)
    assert found.chosen.options == {"standardize": False}
    rows, proba = found.held_out
    labels = cache.table.labels
    assert labels is not None
    right = (proba.argmax(axis=1) == labels[rows]).mean()
    assert right == pytest.approx(np.mean(found.chosen.folds["accuracy"]))


def test_the_final_head_trains_as_many_epochs_as_the_median_fold(blurred: FeatureCache) -> None:
    found, _ = swept(blurred, "linear", {"lr": [0.03, 0.3]}, FOLDS, epochs=30, patience=3)
    assert len(found.chosen.epochs) == 3
    assert found.head.get_params()["epochs"] == max(1, round(np.median(found.chosen.epochs)))


def test_a_candidate_that_diverges_is_noted_and_never_chosen(blurred: FeatureCache) -> None:
    found, _ = swept(blurred, "linear", {"lr": [1e38, 0.01]}, FOLDS, epochs=6, optimizer="sgd")
    first, second = found.candidates
    assert "diverged in epoch" in first.note
    assert first.folds == {}
    assert first.figure("accuracy").value is None
    assert second.note == ""
    assert found.best == 1
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["candidates"][0]["note"] == first.note
    assert "accuracy" not in document["candidates"][0]


def test_if_every_candidate_diverges_that_is_an_error(blurred: FeatureCache) -> None:
    with pytest.raises(HeadError, match="No candidate could be fitted: diverged in epoch"):
        swept(blurred, "linear", {"lr": [1e38, 1e37]}, FOLDS, epochs=6, optimizer="sgd")


def test_without_folds_or_validation_there_is_nothing_to_choose_by(blurred: FeatureCache) -> None:
    with pytest.raises(SplitError, match="give --folds, or --val above 0"):
        swept(blurred, "knn", {"k": [1, 2]}, TrainSettings(val=0))


def test_an_option_that_the_head_does_not_have_is_named(blurred: FeatureCache) -> None:
    with pytest.raises(HeadError, match="no option of knn 'C'"):
        swept(blurred, "knn", {"C": [1, 2]}, FOLDS)


def test_progress_counts_every_fit_of_every_layer(tmp_path: Path) -> None:
    features, names = clouds(45)
    cache = made(tmp_path / "f.h5", {"one": features, "two": features[:, ::-1]}, names)
    targets = targets_of(cache.table)
    settings = TrainSettings(folds=3, device="cpu")
    split = split_rows(cache.table, settings, cache.ok)
    seen: list[tuple[int, int]] = []
    run_sweep(
        cache, "lda", settings, {}, {"shrinkage": [0.1, 0.9]}, ("one", "two"), targets, split,
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(done, 12) for done in range(1, 13)]


@pytest.mark.parametrize("kept", [0, sweep.MOST_KEPT])
def test_the_layer_that_carries_the_signal_is_chosen_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(sweep, "MOST_KEPT", kept)
    features, names = clouds(60, spread=0.5)
    noise = np.random.default_rng(3).normal(size=(60, 5))
    for layers in (("noise", "signal"), ("signal", "noise")):
        cache = made(
            tmp_path / f"{layers[0]}.h5", {"noise": noise, "signal": features[:, None]}, names
        )
        found, split = swept(cache, "logistic", {"C": [0.01, 1.0]}, FOLDS, layers)
        assert found.chosen.layer == "signal"
        assert [one.layer for one in found.candidates] == [layers[0]] * 2 + [layers[1]] * 2
        # What is held out is of the chosen layer, too.
        labels = cache.table.labels
        assert labels is not None
        rows, proba = found.held_out
        right = (proba.argmax(axis=1) == labels[rows]).mean()
        assert right == pytest.approx(np.mean(found.chosen.folds["accuracy"]), abs=1e-9)
        assert rows.tolist() == split.train.tolist()


@hypothesis_settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 10_000))
def test_figures_are_scikit_learns_whatever_classes_occur(
    classes: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth, proba = rng.integers(0, classes, rows), rng.dirichlet(np.ones(classes), rows)
    found = validation_figures(truth, proba)
    predicted = proba.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["log_loss"] == pytest.approx(log_loss(truth, proba, labels=range(classes)))
    recalls = [(predicted[truth == code] == code).mean() for code in np.unique(truth)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


@hypothesis_settings(deadline=None)
@given(st.integers(2, 4), st.integers(2, 30), st.integers(0, 10_000))
def test_figures_of_labels_leave_out_labels_that_no_image_has(
    labels: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random((rows, labels)) < 0.4).astype(np.float32)
    truth[:, 0], truth[0, 1] = 0, 1
    proba = rng.random((rows, labels))
    found = validation_figures(truth, proba)
    present = [place for place in range(labels) if truth[:, place].any()]
    expected = [average_precision_score(truth[:, place], proba[:, place]) for place in present]
    assert found["average_precision"] == pytest.approx(np.mean(expected))
    assert found["log_loss"] == pytest.approx(
        np.mean(-(truth * np.log(proba) + (1 - truth) * np.log(1 - proba)))
    )


def test_labels_are_chosen_by_average_precision_or_log_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(90, 4))
    names = [
        "|".join(name for name, value in zip("abc", row, strict=False) if value > 0) or "|"
        for row in features + 0.7 * rng.normal(size=features.shape)
    ]
    cache = made(tmp_path / "f.h5", {"only": features}, names)
    for select, metric in (("accuracy", "average_precision"), ("log_loss", "log_loss")):
        settings = TrainSettings(folds=3, separator="|", select=select, device="cpu")
        found, _ = swept(cache, "logistic", {"C": [1e-5, 1.0, 1e3]}, settings)
        assert found.metric == metric
        assert set(found.chosen.folds) == {"average_precision", "log_loss"}
        means = [np.mean(one.folds[metric]) for one in found.candidates]
        wanted = np.argmin(means) if metric == "log_loss" else np.argmax(means)
        assert found.best == wanted


def test_validation_rows_without_any_label_have_no_average_precision() -> None:
    # Must not be a ValueError of scikit-learn's; what the figure is, is for the package to say.
    found = validation_figures(np.zeros((3, 2), np.float32), np.full((3, 2), 0.3))
    assert "log_loss" in found
