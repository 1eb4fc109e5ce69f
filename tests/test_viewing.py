"""Heads that see several views of each image, and predictions that average over them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from featpipe.cache import FeatureCache
from featpipe.calibration import apply_temperature, log_losses
from featpipe.classifier import Classifier
from featpipe.cli import cli
from featpipe.crossfit import SharedRows
from featpipe.errors import HeadError, SettingsError
from featpipe.extract import extract_features
from featpipe.head import Head
from featpipe.heads import build_head, make_head
from featpipe.heads.ridge import _Spectrum
from featpipe.images import open_images
from featpipe.preparation import prepare
from featpipe.problems import Draws, Problem
from featpipe.settings import ExtractSettings, TrainSettings
from featpipe.streamed import ResidentRows
from featpipe.tasks import Outcome, Task
from featpipe.train import train_head
from featpipe.viewing import Viewing, features_of, items_of

VIEWS = 3
TRANSFORMS = "RandomResizedCrop(0.3,1.0),HorizontalFlip"
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 6},
    "mlp": {"epochs": 6, "hidden": (9,)},
    "logistic": {},
    "ridge": {},
    "lda": {},
    "knn": {"k": 5},
    "centroid": {},
    "sklearn-logistic": {"C": 0.1, "tol": 1e-8},
    "sklearn:svm.SVC": {},
    "sklearn:naive_bayes.GaussianNB": {},
}
SEVERAL = ("linear", "mlp", "logistic")
PROBABLE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def viewed(
    shapes: Path, small: ExtractSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FeatureCache]:
    """Three views of each of the sample images."""
    out = tmp_path_factory.mktemp("viewed") / "f.h5"
    settings = replace(small, views=VIEWS, augment=TRANSFORMS)
    with extract_features(shapes, "squeezenet1_1", out, settings) as cache:
        yield cache


def noisy(images: int = 60, views: int = VIEWS) -> tuple[np.ndarray, np.ndarray]:
    """Items of three overlapping classes, image by image, and each image's class."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, images)
    own = random.normal(size=(images, 1, 8)) + 1.2 * np.eye(3, 8)[labels][:, None]
    X = own + 0.5 * random.normal(size=(images, views, 8))
    return X.reshape(-1, 8).astype(np.float32), labels


def outcomes(head: Head, X: np.ndarray, targets: np.ndarray, tasks: list[Task]) -> list[Outcome]:
    """What a head makes of tasks, in their order."""
    found = type(head).cross_fit([head], X, targets, 3, tasks)
    return sorted(found, key=lambda outcome: outcome.task)


# ---- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_copies_of_the_plain_view_change_nothing(name: str) -> None:
    X, labels = noisy(views=1)
    copies = np.repeat(X, VIEWS, axis=0)
    alone = make_head(name, HEADS[name]).fit(X, labels, validation=(X[:9], labels[:9]))
    head = make_head(name, HEADS[name])
    head.fit_views(copies, labels, (X[:9], labels[:9]), VIEWS)
    np.testing.assert_allclose(head.predict_proba(X), alone.predict_proba(X), **PROBABLE)
    assert head.curves_ == [pytest.approx(row, rel=1e-4) for row in alone.curves_]


@pytest.mark.parametrize("name", HEADS)
def test_copies_of_the_plain_view_change_no_fold(name: str) -> None:
    X, labels = noisy(views=1)
    order = np.random.default_rng(1).permutation(len(X))
    folds = [np.sort(order[:20]), np.sort(order[20:45])]
    tasks = [Task(np.setdiff1d(np.arange(60), fold), fold, fold) for fold in folds]
    items = [Viewing(VIEWS, 1).task(task) for task in tasks]
    head = make_head(name, HEADS[name])
    copies, targets = np.repeat(X, VIEWS, axis=0), np.repeat(labels, VIEWS)
    for one, other in zip(
        outcomes(head, X, labels, tasks), outcomes(head, copies, targets, items), strict=True
    ):
        assert one.proba is not None
        assert other.proba is not None
        np.testing.assert_allclose(other.proba, one.proba, **PROBABLE)
        assert other.epochs == one.epochs


@pytest.mark.parametrize("name", SEVERAL)
def test_copies_change_nothing_where_images_have_several_labels(name: str) -> None:
    X, labels = noisy(views=1)
    wanted = (np.eye(3)[labels] + np.eye(3)[(labels + X[:, 3].astype(int)) % 3]).clip(0, 1)
    alone = make_head(name, HEADS[name]).fit(X, wanted)
    head = make_head(name, HEADS[name])
    head.fit_views(np.repeat(X, VIEWS, axis=0), wanted, None, VIEWS)
    np.testing.assert_allclose(head.predict_proba(X), alone.predict_proba(X), **PROBABLE)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_from_every_view(name: str) -> None:
    X, labels = noisy()
    both = make_head(name, HEADS[name])
    both.fit_views(X, labels, None, VIEWS)
    for view in range(VIEWS):
        other = X.copy()
        other[view::VIEWS] *= -1
        changed = make_head(name, HEADS[name])
        changed.fit_views(other, labels, None, VIEWS)
        assert np.abs(changed.predict_proba(X) - both.predict_proba(X)).max() > 1e-3


def test_an_epoch_draws_one_view_of_each_image_and_all_come_in_time() -> None:
    train = np.arange(0, 40 * VIEWS, VIEWS)[5:]
    X = ResidentRows(torch.zeros(40 * VIEWS, 2))
    seen = []
    for batch_size in (None, 8):
        draws = Draws(Problem(train, train[:0], 0.1, views=VIEWS, seed=3), batch_size, X)
        for _ in range(20):
            rows = torch.cat(draws.epoch()).numpy()
            np.testing.assert_array_equal(np.sort(rows // VIEWS), train // VIEWS)
            seen.append(rows)
    assert set(np.concatenate(seen[20:])) == set(range(5 * VIEWS, 40 * VIEWS))
    assert len({rows.tobytes() for rows in seen[20:]}) == 20
    # Which view is drawn does not depend on the order of the rows.
    np.testing.assert_array_equal(seen[0], np.sort(seen[20]))


def test_ridge_leaves_out_images_and_not_views() -> None:
    X, labels = noisy(20)
    targets, weights = np.repeat(labels, VIEWS), np.full(len(X), 1 / VIEWS)
    spectrum = _Spectrum(X, targets, weights, 3, VIEWS)
    for alpha in (0.1, 3.0):
        error = 0.0
        for image in range(20):
            out = np.arange(len(X)) // VIEWS == image
            part = _Spectrum(X[~out], targets[~out], weights[~out], 3)
            coef, intercept = part.solve(alpha)
            wanted = np.where(targets[out][:, None] == np.arange(3), 1.0, -1.0)
            error += float(((X[out] @ coef.T + intercept - wanted) ** 2).sum() / VIEWS)
        share = spectrum._values / (spectrum._values + alpha)
        residual = spectrum._wanted - spectrum._left @ (share[:, None] * spectrum._inside)
        assert spectrum._without_image(share, residual) == pytest.approx(error, rel=1e-6)


def test_an_image_is_one_neighbour_however_many_its_views() -> None:
    rows = np.array([[1, 0], [0.99, 0.1], [0.9, 0.3], [0.8, 0.6], [0, 1], [0.1, 1]], np.float32)
    head = make_head("knn", {"k": 2})
    head.fit_views(rows, np.array([0, 1, 1]), None, 2)
    (votes,) = head.votes(np.array([[1, 0]], np.float32), [2])
    assert (votes[0] > 0).all()  # two images, of two classes; by rows both were of the first


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "logistic"])
def test_the_plain_views_alone_train_as_a_cache_without_others(
    viewed: FeatureCache, shapes_cache: FeatureCache, head: str
) -> None:
    options = {"epochs": 5} if head == "linear" else {}
    settings = TrainSettings(folds=3, test=0.2, views="plain")
    one, result = train_head(viewed, head, settings, **options)
    other, expected = train_head(shapes_cache, head, replace(settings, views="all"), **options)
    for part in ("folds", "test"):
        np.testing.assert_array_equal(result.proba[part], expected.proba[part])
    assert one.spec == other.spec
    assert result.conditions["views"] == {"trained": 1, "scored": 1}


@pytest.mark.parametrize("head", HEADS)
def test_tta_is_the_mean_over_views_of_the_same_fit(viewed: FeatureCache, head: str) -> None:
    settings = TrainSettings(val=0.2, test=0.3, tta=True)
    classifier, result = train_head(viewed, head, settings, **HEADS[head])
    assert result.split is not None
    for part, rows in (("val", result.split.val), ("test", result.split.test)):
        each = [
            classifier.head.predict_proba(features_of_view(viewed, rows, view))
            for view in range(VIEWS)
        ]
        expected = apply_temperature(np.mean(each, axis=0), classifier.temperature, False)
        np.testing.assert_allclose(result.proba[part], expected, rtol=1e-5, atol=1e-7)
        features = viewed.features(rows=rows, view=None)
        np.testing.assert_allclose(classifier.predict_features(features), expected, atol=1e-6)
    plain, other = train_head(viewed, head, replace(settings, tta=False), **HEADS[head])
    single = plain.head.predict_proba(features_of_view(viewed, result.split.test, 0))
    expected = apply_temperature(single, plain.temperature, False)
    np.testing.assert_allclose(other.proba["test"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        plain.head.predict_proba(features_of_view(viewed, result.split.test, 0)),
        classifier.head.predict_proba(features_of_view(viewed, result.split.test, 0)),
        rtol=1e-5, atol=1e-7,
    )  # fmt: skip


def test_a_tail_draws_a_view_an_epoch_however_it_is_fitted() -> None:
    X, labels = noisy()
    options = {"epochs": 4, "batch_size": 8, "precision": "float32", "device": "cpu"}
    train, select = np.arange(0, 40 * VIEWS, VIEWS), np.arange(40 * VIEWS, 60 * VIEWS, VIEWS)
    held_out = X[select], labels[40:]
    alone = make_head("tail", options).fit_views(X[: 40 * VIEWS], labels[:40], held_out, VIEWS)
    task = Task(train, select, select, VIEWS)
    (found,) = outcomes(make_head("tail", options), X, np.repeat(labels, VIEWS), [task])
    assert found.proba is not None
    np.testing.assert_allclose(found.proba, alone.predict_proba(X[select]), rtol=1e-5)
    plain = make_head("tail", options).fit(X[train], labels[:40], held_out)
    assert not np.allclose(plain.predict_proba(X[select]), found.proba, rtol=1e-3)


def features_of_view(cache: FeatureCache, rows: np.ndarray, view: int) -> np.ndarray:
    return cache.features(rows=rows, view=view).reshape(len(rows), -1)


@pytest.mark.parametrize("head", ["linear", "logistic", "ridge"])
@pytest.mark.parametrize("views", ["all", "plain"])
def test_folds_with_tta_are_fits_by_hand(viewed: FeatureCache, head: str, views: str) -> None:
    settings = TrainSettings(folds=3, tta=True, views=views)
    targets, split = prepare(viewed, settings)
    unfitted = build_head(head, settings, {"standardize": False, **HEADS[head]})
    rows, layer = split.train, viewed.layer()
    shared = SharedRows(viewed, layer, rows, rows, targets, settings, unfitted)
    tasks = [Task(train, val, val) for train, val in split.folds]
    trained = VIEWS if views == "all" else 1
    for outcome in shared.run([unfitted], tasks):
        task = tasks[outcome.task]
        alone = build_head(head, settings, {"standardize": False, **HEADS[head]})
        held_out = features_of(viewed, layer, task.scored), targets.values[task.scored]
        seen = features_of(viewed, layer, task.train, trained)
        alone.fit_views(seen, targets.values[task.train], held_out, trained)
        said = [
            alone.predict_proba(features_of_view(viewed, task.scored, view))
            for view in range(VIEWS)
        ]
        np.testing.assert_allclose(outcome.proba, np.mean(said, axis=0), **PROBABLE)


def test_the_epoch_is_chosen_on_plain_views(viewed: FeatureCache) -> None:
    settings = TrainSettings(val=0.3)
    classifier, result = train_head(viewed, "linear", settings, epochs=7)
    assert result.split is not None
    rows = result.split.val
    proba = classifier.head.predict_proba(features_of_view(viewed, rows, 0))
    assert viewed.table.labels is not None
    loss = log_losses(proba, viewed.table.labels[rows]).mean()
    assert min(row["val_loss"] for row in result.curves) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("views", ["all", "plain"])
@pytest.mark.parametrize("tta", [True, False])
@pytest.mark.parametrize("head", ["logistic", "linear"])
def test_features_larger_than_memory_give_the_same(
    viewed: FeatureCache, head: str, tta: bool, views: str
) -> None:
    options: dict[str, Any] = {"epochs": 4, "batch_size": None, "lr": 0.01, "patience": 0}
    options = options if head == "linear" else {}
    settings = TrainSettings(folds=3, test=0.2, tta=tta, views=views)
    _, inside = train_head(viewed, head, settings, **options)
    _, outside = train_head(viewed, head, replace(settings, memory=5e-5), **options)
    for part in ("folds", "test"):
        np.testing.assert_allclose(outside.proba[part], inside.proba[part], rtol=0.01, atol=2e-3)
    assert outside.scores["train"].n == inside.scores["train"].n


def test_a_head_that_needs_all_views_at_once_says_so(viewed: FeatureCache) -> None:
    with pytest.raises(HeadError, match=r"or --views plain without --tta\."):
        train_head(viewed, "ridge", TrainSettings(memory=5e-5))


def test_items_are_read_in_any_order(viewed: FeatureCache) -> None:
    rows = np.array([3, 30, 7])
    every = features_of(viewed, viewed.layer(), rows, VIEWS)
    items = np.array([8, 0, 4, 4, 3])
    found = items_of(viewed, viewed.layer(), rows, items, VIEWS)
    np.testing.assert_array_equal(found, every[items])


@pytest.mark.parametrize("sizes", [[9], [1] * 9, [2, 5, 0, 2]])
def test_means_do_not_depend_on_blocks(sizes: list[int]) -> None:
    proba = np.random.default_rng(0).random((9, 4))
    blocks = np.split(proba, np.cumsum(sizes)[:-1])
    found = np.concatenate(list(Viewing(1, 3).means(blocks)))
    np.testing.assert_array_equal(found, proba.reshape(3, 3, 4).mean(axis=1))


def test_sweeps_budgets_and_paired_tests_take_views(viewed: FeatureCache) -> None:
    settings = TrainSettings(val=0.2, test=0.3, tta=True, repeats=2)
    classifier, result = train_head(
        viewed, "logistic", settings, {"C": [0.01, 1.0]}, budgets=[1, None], against=["ridge"]
    )
    assert result.sweep is not None
    assert len(result.sweep.candidates) == 2
    assert result.budget is not None
    assert len(result.budget.points) == 2
    assert "ridge" in result.paired
    assert classifier.spec.view_count == VIEWS


def test_averaging_needs_views(shapes_cache: FeatureCache) -> None:
    with pytest.raises(SettingsError, match=r"only the plain one\. Extract with --views"):
        train_head(shapes_cache, "logistic", TrainSettings(tta=True))


# ---- the classifier ------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", [True, False])
def test_predicting_the_images_gives_the_results_probabilities(
    viewed: FeatureCache, shapes: Path, tta: bool, tmp_path: Path
) -> None:
    settings = TrainSettings(val=0.2, test=0.3, tta=tta)
    made, result = train_head(viewed, "linear", settings, epochs=6)
    made.save(tmp_path / "c.safetensors")
    classifier = Classifier.load(tmp_path / "c.safetensors")
    assert classifier.spec == made.spec
    assert classifier.spec.views == (viewed.spec.views if tta else {})
    said = {one.id: one.proba for one in classifier.predict(open_images(shapes))}
    assert result.split is not None
    for part, rows in (("val", result.split.val), ("test", result.split.test)):
        found = np.array([said[name] for name in viewed.table.ids[rows]])
        np.testing.assert_allclose(found, result.proba[part], rtol=1e-3, atol=1e-5)
    # A single view's features are taken as well.
    assert classifier.predict_features(viewed.features()).shape == (36, 3)


def test_the_command_line_extracts_trains_and_predicts_by_views(
    shapes: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli, [str(one) for one in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    out = tmp_path / "f.h5"
    images = ["extract", shapes, "-b", "squeezenet1_1@random", "-o", out, "--input-size", 64]
    extract = [*images, "--views", 3, "--augment", TRANSFORMS]
    plan = json.loads(run(*extract, "--plan", "--json"))
    assert plan["row_bytes"] == 3 * 512 * 4
    assert "3 views" in run(*extract)
    described = run("info", out)
    assert "3: RandomResizedCrop(scale=(0.3, 1.0)), RandomHorizontalFlip(), seed 0" in described
    refused = CliRunner().invoke(cli, [str(one) for one in images])
    assert refused.exit_code == 1
    train = ["train-head", out, "--epochs", 3, "--tta", "--views", "plain", "--json", "-o"]
    document = json.loads(run(*train, tmp_path / "c"))
    assert document["conditions"]["views"] == {"trained": 1, "scored": 3}
    saved = tmp_path / "c" / "classifier.safetensors"
    assert "views" in run("info", saved)
    said = run("train-head", out, "--epochs", 3, "-o", tmp_path / "d")
    assert "Views of an image: 3 to train on, 1 to score." in said
    lines = run("predict", saved, shapes / "circle").strip().splitlines()
    assert len(lines) == 13
