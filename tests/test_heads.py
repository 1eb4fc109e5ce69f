"""Heads: scikit-learn's own checks, and what featpipe promises beyond them."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.errors import HeadError, UnknownNameError
from featpipe.head import Head
from featpipe.heads import knn, make_head
from featpipe.registry import plugin_names
from featpipe.tasks import Task

NAMES = plugin_names("heads")
BY_EPOCHS = ["linear", "mlp", "tail"]
STANDARDIZING = [name for name in NAMES if "standardize" in make_head(name).get_params()]
QUICK = {"epochs": 30, "lr": 0.05, "hidden": (16,), "schedule": "constant", "device": "cpu"}

Data = tuple[np.ndarray, np.ndarray]


def quick_head(name: str, **options: Any) -> Head:
    """A head that learns a few hundred rows in a moment."""
    head = make_head(name)
    wanted = {**QUICK, **options}
    return head.set_params(**{k: v for k, v in wanted.items() if k in head.get_params()})


def blobs(seed: int, rows: int = 90, spread: float = 1.0) -> Data:
    """Rows of three classes around three corners, with other noise for another seed."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    centres = 3 * np.eye(3, 6)
    return (centres[labels] + spread * random.normal(size=(rows, 6))).astype(np.float32), labels


@parametrize_with_checks([quick_head(name) for name in NAMES])
def test_every_head_is_a_scikit_learn_classifier(estimator: Head, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("name", NAMES)
def test_a_clone_has_the_same_options_and_is_not_fitted(name: str) -> None:
    head = quick_head(name, standardize=False).fit(*blobs(0))
    copy = clone(head)
    assert copy.get_params() == head.get_params()
    assert not hasattr(copy, "classes_")


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_head_gives_the_same_probabilities(name: str) -> None:
    head = quick_head(name).fit(*blobs(0))
    X, _ = blobs(1)
    again = pickle.loads(pickle.dumps(head))
    assert np.array_equal(again.predict_proba(X), head.predict_proba(X))


@pytest.mark.parametrize("name", NAMES)
def test_state_and_restore_give_the_same_probabilities(name: str) -> None:
    X, y = blobs(0)
    head = quick_head(name).fit(X, y)
    again = quick_head(name).restore(head.state(), head.classes_, head.n_features_in_)
    assert np.array_equal(again.predict_proba(X), head.predict_proba(X))
    assert again.n_parameters == head.n_parameters


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_are_restored_with_both_columns(name: str) -> None:
    X, y = blobs(0)
    X, y = X[y < 2], np.array(["no", "yes"])[y[y < 2]]
    head = quick_head(name).fit(X, y)
    again = quick_head(name).restore(head.state(), head.classes_, head.n_features_in_)
    assert np.array_equal(again.predict_proba(X), head.predict_proba(X))
    assert (again.predict(X) == y).mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_head_works_in_a_pipeline_and_a_cross_validation(name: str) -> None:
    X, y = blobs(0)
    scores = cross_val_score(make_pipeline(StandardScaler(), quick_head(name)), X, y, cv=3)
    assert scores.min() > 0.8


@pytest.mark.parametrize(
    ("name", "option", "good", "bad"),
    [("linear", "lr", 0.05, 1e-9), ("mlp", "lr", 0.05, 1e-9), ("sklearn-logistic", "C", 1, 1e-12)],
)
def test_a_grid_search_finds_the_option_that_learns(
    name: str, option: str, good: float, bad: float
) -> None:
    grid = {option: [bad, good]}
    search = GridSearchCV(quick_head(name), grid, cv=3, scoring="neg_log_loss").fit(*blobs(0))
    assert search.best_params_ == {option: good}


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_sum_to_one_and_follow_the_order_of_classes(name: str) -> None:
    X, y = blobs(0)
    names = np.array(["zebra", "ant", "mole"])[y]
    head = quick_head(name).fit(X, names)
    proba = head.predict_proba(X)
    assert list(head.classes_) == ["ant", "mole", "zebra"]
    assert proba.sum(axis=1) == pytest.approx(1)
    assert (proba >= 0).all()
    assert (head.classes_[proba.argmax(axis=1)] == names).mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_head(name: str) -> None:
    first, second = (quick_head(name).fit(*blobs(0)).state() for _ in range(2))
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert np.array_equal(array, second[key]), key


@pytest.mark.parametrize("name", BY_EPOCHS)
def test_another_seed_gives_other_weights(name: str) -> None:
    first, second = (quick_head(name, seed=seed).fit(*blobs(0)).arrays() for seed in (0, 1))
    assert all(not np.array_equal(array, second[key]) for key, array in first.items())


@pytest.mark.parametrize("name", NAMES)
def test_fitting_leaves_the_global_random_numbers_alone(name: str) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    quick_head(name).fit(*blobs(0), validation=blobs(1)).predict(blobs(2)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("name", BY_EPOCHS)
def test_what_was_drawn_before_does_not_change_the_head(name: str) -> None:
    proba = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            proba.append(quick_head(name).fit(*blobs(0)).predict_proba(blobs(1)[0]))
    assert np.array_equal(*proba)


@pytest.mark.parametrize("name", BY_EPOCHS)
def test_the_epoch_of_the_lowest_validation_loss_is_kept(name: str) -> None:
    # Labels that are partly noise, so that the validation loss rises again.
    (X, y), (X_val, y_val) = blobs(0, spread=3), blobs(1, spread=3)
    head = quick_head(name, epochs=60, patience=0).fit(X, y, validation=(X_val, y_val))
    losses = [row["val_loss"] for row in head.curves_]
    assert losses.index(min(losses)) < len(losses) - 1  # else the last would do as well
    proba = head.predict_proba(X_val)
    loss = -np.log(proba[np.arange(len(y_val)), y_val]).mean()
    assert loss == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("name", BY_EPOCHS)
def test_training_stops_when_patience_runs_out(name: str) -> None:
    head = quick_head(name, epochs=200, patience=4)
    head.fit(*blobs(0, spread=3), validation=blobs(1, spread=3))
    losses = [row["val_loss"] for row in head.curves_]
    assert len(losses) < 200
    assert len(losses) - 1 - losses.index(min(losses)) == 4


@pytest.mark.parametrize("name", BY_EPOCHS)
def test_validation_rows_of_unknown_classes_select_nothing(name: str) -> None:
    X, y = blobs(0)
    head = quick_head(name, patience=2).fit(X, y, validation=(X[:5], np.full(5, 99)))
    assert len(head.curves_) == QUICK["epochs"]
    assert all(np.isfinite(list(row.values())).all() for row in head.curves_)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_lists_the_known_ones(name: str) -> None:
    with pytest.raises(HeadError, match="flux") as error:
        make_head(name, {"flux": 1})
    for option in make_head(name).get_params():
        assert option in str(error.value)


def test_an_unknown_head_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="linear"):
        make_head("liner")


@pytest.mark.parametrize("name", NAMES)
def test_one_class_alone_cannot_be_learnt(name: str) -> None:
    with pytest.raises(HeadError, match="one class"):
        quick_head(name).fit(blobs(0)[0], np.zeros(90, int))


@pytest.mark.parametrize("name", STANDARDIZING)
@pytest.mark.parametrize("constant", [0.0, 1e-30, 0.1, 1e6])
def test_a_constant_feature_changes_nothing(name: str, constant: float) -> None:
    X, y = blobs(0)
    X = np.column_stack([X, np.full(len(X), constant, np.float32)])
    head = quick_head(name, standardize=True).fit(X, y)
    assert np.isfinite(head.predict_proba(X)).all()
    assert head.score(X, y) > 0.9


@pytest.mark.parametrize("name", STANDARDIZING)
def test_standardised_features_may_have_any_scale(name: str) -> None:
    X, y = blobs(0)
    scale = np.array([1e-4, 1, 1e4, 1, 1, 1], np.float32)
    plain = quick_head(name, standardize=True).fit(X, y).predict_proba(X)
    scaled = (
        quick_head(name, standardize=True)
        .fit(X * scale + 5 * scale, y)
        .predict_proba(X * scale + 5 * scale)
    )
    assert np.abs(scaled - plain).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("linear", "lr", -1.0),
        ("linear", "lr", float("nan")),
        ("linear", "batch_size", 0),
        ("linear", "epochs", 0),
        ("linear", "epochs", "abc"),
        ("linear", "weight_decay", -1.0),
        ("mlp", "dropout", 2.0),
        ("mlp", "hidden", (-5,)),
        ("mlp", "hidden", (0,)),
        ("mlp", "hidden", "abc"),
        ("sklearn-logistic", "C", -1),
        ("sklearn-logistic", "C", "abc"),
    ],
)
def test_an_impossible_value_is_a_head_error_that_names_the_option(
    name: str, option: str, value: Any
) -> None:
    with pytest.raises(HeadError, match=option.replace("_", ".")):
        quick_head(name, **{option: value}).fit(*blobs(0))


# ---- what each head is, beside whoever has it as well ----------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("features", [6, 120])
def test_ridge_is_scikit_learns(classes: int, features: int) -> None:
    X, y = wide_blobs(features)
    X, y = X[y < classes].astype(np.float64), y[y < classes]
    weights = np.random.default_rng(0).random(len(y))
    head = make_head("ridge", {"alpha": 2.5, "standardize": False}).fit(X, y, sample_weight=weights)
    model = RidgeClassifier(alpha=2.5).fit(X, y, sample_weight=weights)
    coef = np.atleast_2d(model.coef_)
    np.testing.assert_allclose(head.arrays()["coef"], coef, atol=1e-6)
    np.testing.assert_allclose(head.arrays()["intercept"], model.intercept_, atol=1e-6)


@pytest.mark.parametrize("features", [6, 120])
def test_ridge_takes_the_penalty_that_leaving_rows_out_takes(features: int) -> None:
    X, y = wide_blobs(features)
    X, y = X[:40].astype(np.float64), y[:40]
    head = make_head("ridge", {"standardize": False}).fit(X, y)
    tried = [head.alpha_ / 3, head.alpha_, head.alpha_ * 3]
    errors = []
    for alpha in tried:
        missed = 0.0
        for row in range(40):
            rest = np.arange(40) != row
            model = RidgeClassifier(alpha=alpha).fit(X[rest], y[rest])
            target = np.where(np.arange(3) == y[row], 1, -1)
            missed += ((model.decision_function(X[row : row + 1])[0] - target) ** 2).sum()
        errors.append(missed)
    assert int(np.argmin(errors)) == 1


@pytest.mark.parametrize("features", [6, 120])
@pytest.mark.parametrize("shrinkage", [0.3, 1.0])
def test_lda_is_scikit_learns(features: int, shrinkage: float) -> None:
    X, y = wide_blobs(features)
    head = make_head("lda", {"shrinkage": shrinkage, "standardize": False}).fit(X, y)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), model.predict_proba(X), atol=1e-5)


def test_ldas_shrinkage_is_ledoits_and_wolfs() -> None:
    X, y = wide_blobs(120)
    head = make_head("lda", {"standardize": False}).fit(X, y)
    within = X - np.stack([X[y == label].mean(0) for label in range(3)])[y]
    assert head.shrinkage_ == pytest.approx(ledoit_wolf(within, assume_centered=True)[1], rel=1e-4)
    assert 0 < head.shrinkage_ < 1


def test_centroid_is_the_nearest_mean() -> None:
    X, y = blobs(0, spread=2)
    new, _ = blobs(1, spread=2)
    head = make_head("centroid", {"metric": "euclidean", "standardize": False}).fit(X, y)
    assert np.array_equal(head.predict(new), NearestCentroid().fit(X, y).predict(new))
    head = make_head("centroid", {"standardize": False}).fit(X, y)
    means = np.stack([normalize(X)[y == label].mean(0) for label in range(3)])
    assert np.array_equal(head.predict(new), (normalize(new) @ normalize(means).T).argmax(1))


@pytest.mark.parametrize("block", [1 << 24, 200])
def test_knn_counts_votes_by_cosine(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BLOCK_VALUES", block)
    X, y = blobs(0, spread=3)
    new, _ = blobs(1, spread=3)
    head = make_head("knn", {"k": 7, "temperature": 0.2}).fit(X, y)
    model = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda far: np.exp(-far / 0.2)
    ).fit(X, y)
    three, seven = head.votes(new, [3, 7])
    shares = seven / seven.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, model.predict_proba(new), atol=1e-5)
    prior = seven + knn.PRIOR_VOTE
    np.testing.assert_allclose(head.predict_proba(new), prior / prior.sum(1, keepdims=True))
    assert np.array_equal(head.set_params(k=3).predict(new), three.argmax(1))
    np.testing.assert_allclose(np.log(seven / seven.sum(1, keepdims=True) + 1e-9),
                               np.log(model.predict_proba(new) + 1e-9), atol=1e-3)  # fmt: skip


def test_knn_with_more_neighbours_than_rows_asks_all() -> None:
    X, y = blobs(0, rows=9)
    head = make_head("knn", {"k": 50}).fit(X, y)
    assert head.predict_proba(X).sum(1) == pytest.approx(1)
    assert (head.predict(X) == y).all()


@pytest.mark.parametrize("name", ["logistic", "ridge", "sklearn-logistic"])
def test_a_row_of_weight_two_is_two_rows(name: str) -> None:
    X, y = blobs(0, spread=2)
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    weighted = quick_head(name).fit(X, y, sample_weight=weights)
    repeated = quick_head(name).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=2e-3)


def wide_blobs(features: int) -> Data:
    """Three classes in so many features, some of them noise."""
    random = np.random.default_rng(3)
    labels = np.arange(90) % 3
    X = random.normal(size=(90, features))
    X[:, :6] += 2 * np.eye(3, 6)[labels]
    return X.astype(np.float32), labels


# ---- many fits at once ------------------------------------------------------------------------

GRIDS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"lr": 0.05, "label_smoothing": 0.1}, {"lr": 0.01, "class_weight": "balanced"}],
    "mlp": [{"lr": 0.05, "batch_norm": True}, {"lr": 0.01, "mixup": 0.3, "clip": 1.0}],
    "logistic": [{"C": 0.1}, {"C": 10.0}, {"C": 1.0, "class_weight": "balanced"}],
    "ridge": [{"alpha": 1.0}, {"alpha": 100.0}, {}],
    "knn": [{"k": 3}, {"k": 15}, {"k": 3, "temperature": 1.0}],
}


def folds_of(rows: int) -> list[Task]:
    """Three unequal folds; the last scores other rows than it selects on, and draws otherwise."""
    order = np.random.default_rng(0).permutation(rows)
    parts = np.split(order, [rows // 4, rows // 2])
    tasks = [
        Task(np.sort(np.setdiff1d(order, part)), np.sort(part), np.sort(part)) for part in parts[:2]
    ]
    return [*tasks, Task(np.sort(parts[2]), np.sort(parts[1]), np.sort(parts[0]), seed=7)]


@pytest.mark.parametrize("name", NAMES)
def test_many_fits_at_once_are_as_good_as_one_by_one(name: str) -> None:
    X, y = blobs(0, spread=2)
    tasks = folds_of(len(X))
    heads = [quick_head(name, **options) for options in GRIDS.get(name, [{}])]
    seen = set()
    for outcome in type(heads[0]).cross_fit(heads, X, y, 3, tasks):
        task = tasks[outcome.task]
        alone = clone(heads[outcome.head])
        if "standardize" in alone.get_params():
            alone.set_params(standardize=False)
        if task.seed and "seed" in alone.get_params():
            alone.set_params(seed=alone.seed + task.seed)
        select = X[task.select], y[task.select]
        alone.fit(X[task.train], y[task.train], validation=select)
        assert outcome.proba == pytest.approx(alone.predict_proba(X[task.scored]), abs=2e-4)
        assert outcome.epochs == (len(alone.curves_) and outcome.epochs)
        assert not outcome.note
        seen.add((outcome.head, outcome.task))
    assert seen == {(i, j) for i in range(len(heads)) for j in range(len(tasks))}
    assert not hasattr(heads[0], "classes_")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_a_task_lacks_gets_no_probability(name: str) -> None:
    X, y = blobs(0)
    task = Task(np.flatnonzero(y < 2), np.arange(0), np.arange(len(X)))
    (outcome,) = type(quick_head(name)).cross_fit([quick_head(name)], X, y, 3, [task])
    assert outcome.proba is not None
    assert outcome.proba.sum(axis=1) == pytest.approx(1)
    assert outcome.proba[:, 2].max() == 0


@pytest.mark.parametrize("name", ["linear", "mlp", "logistic"])
def test_labels_are_learnt_each_by_itself(name: str) -> None:
    X, y = blobs(0, rows=300)
    targets = np.stack([y == 0, y != 1, X[:, 5] > 0], axis=1).astype(int)
    head = quick_head(name, epochs=60).fit(X, targets)
    assert head.multilabel_
    proba = head.predict_proba(X)
    assert proba.shape == (300, 3)
    assert ((head.predict(X) == targets).mean(axis=0) > 0.85).all()
    assert np.array_equal(head.predict(X), proba > 0.5)
    again = quick_head(name).restore(head.state(), head.classes_, 6, multilabel=True)
    assert np.array_equal(again.predict_proba(X), proba)
    tasks = folds_of(300)
    for outcome in type(head).cross_fit([quick_head(name)], X, targets, 3, tasks):
        task = tasks[outcome.task]
        alone = quick_head(name, standardize=False)
        if "seed" in alone.get_params():
            alone.set_params(seed=alone.seed + task.seed)
        select = X[task.select], targets[task.select]
        alone.fit(X[task.train], targets[task.train], validation=select)
        assert outcome.proba == pytest.approx(alone.predict_proba(X[task.scored]), abs=2e-4)


def test_several_labels_of_logistic_are_as_many_regressions() -> None:
    X, y = blobs(0, rows=200, spread=3)
    targets = np.stack([y == 0, y != 1, X[:, 5] > 0.5], axis=1).astype(int)
    options = {"C": 0.3, "class_weight": "balanced", "tol": 1e-12}
    head = quick_head("logistic", **options).fit(X, targets)
    for label in range(3):
        alone = quick_head("logistic", **options).fit(X, targets[:, label])
        assert head.predict_proba(X)[:, label] == pytest.approx(
            alone.predict_proba(X)[:, 1], abs=1e-5
        )


@pytest.mark.parametrize("name", BY_EPOCHS)
def test_the_last_fit_takes_as_many_epochs_as_the_trials_did(name: str) -> None:
    head = quick_head(name)
    assert head.refit([3, 9, 5]).epochs == 5
    assert head.refit([]).epochs == QUICK["epochs"]
    assert clone(head).set_params(schedule="cosine").refit([3, 9, 5]).epochs == QUICK["epochs"]


def test_a_head_for_one_class_refuses_columns_of_labels() -> None:
    X, y = blobs(0)
    with pytest.raises(ValueError, match="1d"):
        quick_head("lda").fit(X, np.stack([y == 0, y == 1], axis=1).astype(int))
