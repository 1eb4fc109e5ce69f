"""Any classifier of scikit-learn as a head: beside the original, saved, and damaged on purpose."""

import io
import json
import logging
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from click.testing import CliRunner
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe import Classifier, extract_features, train_head
from featpipe.cli import cli
from featpipe.errors import ClassifierError, HeadError, MissingExtraError, UnknownNameError
from featpipe.estimators import PACKED, estimator_from_bytes, estimator_to_bytes
from featpipe.head import Head
from featpipe.heads import build_head, make_head
from featpipe.heads.sklearn import find_classifier
from featpipe.settings import TrainSettings

# Small ones, each kept in another way.
OPTIONS: dict[str, dict[str, Any]] = {
    "linear_model.LogisticRegression": {},
    "neighbors.KNeighborsClassifier": {"n_neighbors": 3},
    "neighbors.NearestCentroid": {},
    "svm.SVC": {},
    "svm.LinearSVC": {},
    "linear_model.Perceptron": {},
    "naive_bayes.GaussianNB": {},
    "discriminant_analysis.LinearDiscriminantAnalysis": {},
    "tree.DecisionTreeClassifier": {"max_leaf_nodes": 5},
    "ensemble.RandomForestClassifier": {"n_estimators": 5},
    "ensemble.ExtraTreesClassifier": {"n_estimators": 5},
    "ensemble.AdaBoostClassifier": {"n_estimators": 5},
    "ensemble.BaggingClassifier": {"n_estimators": 5, "max_features": 0.5},
    "ensemble.HistGradientBoostingClassifier": {"max_iter": 5},
    "neural_network.MLPClassifier": {"hidden_layer_sizes": [8], "max_iter": 300},
    "calibration.CalibratedClassifierCV": {},
}
Data = tuple[np.ndarray, np.ndarray]


def blobs(seed: int, classes: int = 3, features: int = 6) -> Data:
    """Rows around a corner for each class, with other noise for another seed."""
    labels = np.arange(30 * classes) % classes
    X = 2 * np.eye(classes, features)[labels]
    X += np.random.default_rng(seed).normal(size=X.shape)
    return X.astype(np.float32), labels


def head_of(name: str, **options: Any) -> Head:
    return make_head(f"sklearn:{name}", {**OPTIONS.get(name, {}), **options})


def restored(head: Head) -> Head:
    """As `Classifier` saves and loads it: parameters through JSON, the rest as arrays."""
    params = json.loads(json.dumps(head.get_params()))
    again = make_head("sklearn:" + head.get_params()["estimator"], params)
    return again.restore(head.state(), head.classes_, head.n_features_in_)


@parametrize_with_checks([head_of(name) for name in ("svm.SVC", "tree.DecisionTreeClassifier")])
def test_other_classifiers_pass_scikit_learns_checks_as_well(estimator: Head, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        (KNeighborsClassifier, "neighbors.KNeighborsClassifier", {"n_neighbors": 3}),
        (LogisticRegression, "sklearn.linear_model.LogisticRegression", {"C": 0.1}),
        (RandomForestClassifier, "ensemble.RandomForestClassifier", {"random_state": 7}),
    ],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_the_classifiers_own(
    kind: type, name: str, options: dict[str, Any], classes: int
) -> None:
    X, y = blobs(0, classes)
    new, _ = blobs(1, classes)
    scaler = StandardScaler().fit(X)
    alone = kind(**options).fit(scaler.transform(X), y)
    head = make_head(f"sklearn:{name}", options).fit(X, y)
    expected = alone.predict_proba(scaler.transform(new))
    np.testing.assert_allclose(head.predict_proba(new), expected, atol=1e-4)
    plain = make_head(f"sklearn:{name}", {**options, "standardize": False}).fit(X, y)
    expected = kind(**options).fit(X, y).predict_proba(new)
    np.testing.assert_allclose(plain.predict_proba(new), expected, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_decision_values_are_logits_where_there_are_no_probabilities(classes: int) -> None:
    X, y = blobs(0, classes)
    head = head_of("svm.LinearSVC", standardize=False).fit(X, y)
    alone = LinearSVC(random_state=0).fit(X, y)
    assert np.array_equal(head.predict(X), alone.predict(X))
    logits, proba = alone.decision_function(X), head.predict_proba(X)
    if classes == 2:
        np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-logits)), atol=1e-6)
    else:
        ratios = np.log(proba[:, 1:] / proba[:, :1])
        np.testing.assert_allclose(ratios, logits[:, 1:] - logits[:, :1], atol=1e-4)


@pytest.mark.parametrize("classes", [3, 4])
def test_one_against_one_gives_its_predictions(classes: int) -> None:
    X, y = blobs(0, classes)
    options = {"decision_function_shape": "ovo"}
    head = head_of("svm.SVC", standardize=False, **options).fit(X, y)
    predicted = SVC(**options).fit(X, y).predict(X)
    np.testing.assert_allclose(head.predict_proba(X), np.eye(classes)[predicted], atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_saved_classifier_gives_the_same_probabilities(name: str, classes: int) -> None:
    X, y = blobs(0, classes)
    new, _ = blobs(1, classes)
    head = head_of(name).fit(X, y)
    again = restored(head)
    assert np.array_equal(again.predict_proba(new), head.predict_proba(new))
    assert again.n_parameters == head.n_parameters > 0
    assert (head.predict(X) == y).mean() > 0.8


def test_parameters_are_coefficients_or_else_all_that_is_held() -> None:
    X, y = blobs(0)
    assert make_head("sklearn").fit(X, y).n_parameters == 3 * 6 + 3
    network = head_of("neural_network.MLPClassifier").fit(X, y)
    assert network.n_parameters == 6 * 8 + 8 + 8 * 3 + 3
    assert head_of("neighbors.KNeighborsClassifier").fit(X, y).n_parameters >= X.size


@pytest.mark.parametrize("name", OPTIONS)
def test_equal_runs_give_equal_bytes(name: str) -> None:
    first, second = (head_of(name).fit(*blobs(0)).state() for _ in range(2))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_small_tree_over_many_features_is_an_artefact_like_any_other() -> None:
    X, y = blobs(0, features=30_000)
    head = head_of("tree.DecisionTreeClassifier", standardize=False).fit(X, y)
    assert head.state()["estimator"].size >= 30_000
    assert np.array_equal(restored(head).predict_proba(X), head.predict_proba(X))


def test_the_seed_of_the_run_is_the_random_state_unless_one_is_given() -> None:
    options = {"n_estimators": 3}
    head = build_head("sklearn:ensemble.RandomForestClassifier", TrainSettings(seed=5), options)
    X, y = blobs(0)
    assert head.fit(X, y).estimator_.random_state == 5
    assert head.estimator_.n_estimators == 3
    head.set_params(random_state=9)
    assert head.fit(X, y).estimator_.random_state == 9
    assert clone(head).get_params() == head.get_params()


def test_a_grid_search_goes_over_the_classifiers_parameters() -> None:
    grid = {"params": [{"C": 1e-12}, {"C": 1.0}]}
    head = make_head("sklearn")
    search = GridSearchCV(head, grid, cv=3, scoring="neg_log_loss").fit(*blobs(0))
    assert search.best_params_ == {"params": {"C": 1.0}}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("neighbors.KNeighborClassifier", r"Did you mean .*neighbors\.KNeighborsClassifier"),
        ("KNeighborsClassifier", r"Did you mean .*neighbors\.KNeighborsClassifier"),
        ("nearby.KNeighborsClassifier", r"Did you mean .*neighbors\.KNeighborsClassifier"),
        ("linear_model.LinearRegression", r"no classifier. There are .*svm\.SVC"),
        ("linear_model.lars_path", "no classifier"),
        ("base.ClassifierMixin", "no classifier"),
        ("neighbors.", "no classifier"),
        ("..os.path", "no classifier"),
        ("ensemble._forest.RandomForestClassifier", "no classifier"),
    ],
)
def test_what_is_no_classifier_of_scikit_learn_is_refused(name: str, match: str) -> None:
    with pytest.raises(HeadError, match=match):
        make_head(f"sklearn:{name}").fit(*blobs(0))


def test_nothing_outside_scikit_learn_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine.SVC", "sklearn.mine.SVC", ".mine.SVC"):
        with pytest.raises(HeadError, match="no classifier"):
            find_classifier(name)
    assert not {"mine", "sklearn.mine"} & set(sys.modules)


def test_only_heads_that_are_many_take_something_after_a_colon() -> None:
    with pytest.raises(UnknownNameError, match="linear takes nothing after a colon"):
        make_head("linear:fast")


def test_an_unknown_option_of_the_classifier_names_the_nearest() -> None:
    with pytest.raises(HeadError, match=r"Did you mean n_neighbors.*metric") as raised:
        head_of("neighbors.KNeighborsClassifier", n_neighbours=3)
    assert "standardize" in str(raised.value)
    with pytest.raises(HeadError, match="There is no option"):
        make_head("sklearn", {"params": {"flux": 1}}).fit(*blobs(0))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("neighbors.KNeighborsClassifier", {"n_neighbors": -1}, "n_neighbors.*must be"),
        ("neighbors.KNeighborsClassifier", {"n_neighbors": 500}, "n_neighbors"),
        ("ensemble.RandomForestClassifier", {"max_depth": "deep"}, "max_depth.*must be"),
        ("naive_bayes.MultinomialNB", {}, "standardize=False"),
        ("ensemble.VotingClassifier", {}, "plain values"),
        ("linear_model.LogisticRegression", {"standardize": "abc"}, "standardize"),
    ],
)
def test_a_bad_value_is_a_head_error(name: str, options: dict[str, Any], match: str) -> None:
    X, y = blobs(0)
    with pytest.raises(HeadError, match=match):
        head_of(name, **options).fit(X, y).predict_proba(X)


def test_warnings_of_scikit_learn_become_notes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "featpipe"):
        head_of("linear_model.LogisticRegression", max_iter=1).fit(*blobs(0))
    assert "failed to converge" in caplog.text


# ---- files that were made, or made up ------------------------------------------------------


class Stranger(BaseEstimator):
    """What is no part of scikit-learn."""


def forged(estimator: BaseEstimator, **changes: Any) -> bytes:
    """The bytes of a forest of one tree, whose nodes are then tampered with."""
    kept = estimator.estimators_[0]
    tree = kept.tree_
    state = tree.__getstate__()
    nodes = state["nodes"].copy()
    for field, value in changes.items():
        if field in nodes.dtype.names:
            nodes[field][0] = value
        else:
            state[field] = value
    kept.tree_ = {PACKED: "tree", "classes": 3, **state, "nodes": nodes}
    content: bytes = skops.io.dumps(estimator)
    kept.tree_ = tree
    return content


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"left_child": 10**6}, "leads nowhere"),
        ({"right_child": -5}, "leads nowhere"),
        ({"left_child": 0}, "leads nowhere"),
        ({"feature": 10**6}, "more than 6 features"),
        ({"feature": -3}, "more than 6 features"),
        ({"node_count": 10**6}, "contradicts itself"),
        ({"classes": 0}, "contradicts itself"),
        ({"classes": 7}, "cannot be used"),
        ({"values": np.zeros((1, 1, 3))}, "cannot be used"),
    ],
)
def test_a_tree_that_leads_out_of_itself_is_refused(changes: dict[str, Any], match: str) -> None:
    forest = RandomForestClassifier(1, random_state=0).fit(*blobs(0))
    sound = estimator_from_bytes(forged(forest), RandomForestClassifier, 6)
    assert np.array_equal(sound.predict(blobs(1)[0]), forest.predict(blobs(1)[0]))
    with pytest.raises(HeadError, match=match):
        estimator_from_bytes(forged(forest, **changes), RandomForestClassifier, 6)


def test_a_tree_that_expects_more_features_than_it_will_be_given_is_refused() -> None:
    bagged = BaggingClassifier(n_estimators=1, random_state=0).fit(*blobs(0))
    bagged.n_features_in_ = 3
    with pytest.raises(HeadError, match="contradicts itself"):
        estimator_from_bytes(estimator_to_bytes(bagged), BaggingClassifier, 3)


@pytest.mark.parametrize("field", ["left", "right", "feature_idx"])
def test_boosted_trees_are_checked_as_well(field: str) -> None:
    head = head_of("ensemble.HistGradientBoostingClassifier").fit(*blobs(0))
    nodes = head.estimator_._predictors[0][0].nodes
    nodes[field][0] = 10**6
    state = head.arrays()
    with pytest.raises(HeadError, match=r"leads nowhere|more than 6 features"):
        clone(head).restore(state, head.classes_, 6)


def test_what_would_need_other_types_is_neither_saved_nor_loaded() -> None:
    fitted = KNeighborsClassifier(algorithm="kd_tree").fit(*blobs(0))
    with pytest.raises(HeadError, match=r"KDTree.*take another classifier"):
        estimator_to_bytes(fitted)
    with pytest.raises(HeadError, match=r"KDTree.*not trusted"):
        estimator_from_bytes(skops.io.dumps(fitted), KNeighborsClassifier, 6)
    fitted = LogisticRegression().fit(*blobs(0))
    fitted.stranger_ = Stranger()
    with pytest.raises(HeadError, match="Stranger, which are not trusted"):
        estimator_from_bytes(skops.io.dumps(fitted), LogisticRegression, 6)
    with pytest.raises(HeadError, match="HistGradientBoosting"):
        head_of("ensemble.GradientBoostingClassifier").fit(*blobs(0)).state()


def test_bytes_of_something_else_are_refused() -> None:
    fitted = LogisticRegression().fit(*blobs(0))
    content = estimator_to_bytes(fitted)
    for other, kind, features, match in [
        (content, SVC, 6, "not a SVC"),
        (content, LogisticRegression, 7, "fitted on 6"),
        (content[: len(content) // 2], LogisticRegression, 6, "cannot be used"),
        (b"", LogisticRegression, 6, "cannot be used"),
    ]:
        with pytest.raises(HeadError, match=match):
            estimator_from_bytes(other, kind, features)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}" * 1000)
    with pytest.raises(HeadError, match="compressed"):
        estimator_from_bytes(bomb.getvalue(), LogisticRegression, 6)


def test_other_classes_than_the_files_are_refused() -> None:
    head = head_of("svm.SVC").fit(*blobs(0))
    with pytest.raises(HeadError, match="other classes"):
        clone(head).restore(head.state(), np.arange(2), 6)


def test_a_state_that_makes_no_sense_is_a_head_error_when_it_is_used() -> None:
    X, y = blobs(0)
    head = head_of("neighbors.KNeighborsClassifier").fit(X, y)
    head.estimator_._y[:] = 10**6
    again = clone(head).restore(head.state(), head.classes_, 6)
    with pytest.raises(HeadError, match="out of bounds"):
        again.predict_proba(X)


def test_options_that_are_no_plain_values_are_not_saved() -> None:
    head = head_of("neighbors.KNeighborsClassifier", weights=lambda far: 1 / (1 + far))
    with pytest.raises(HeadError, match="no plain values"):
        head.fit(*blobs(0)).state()


def test_without_skops_it_trains_but_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    X, y = blobs(0)
    head = head_of("svm.SVC").fit(X, y)
    assert head.score(X, y) > 0.8
    with pytest.raises(MissingExtraError, match=r"featpipe\[sklearn\]"):
        head.state()


# ---- the whole way ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["neighbors.KNeighborsClassifier", "ensemble.RandomForestClassifier"]
)
def test_a_classifier_is_trained_saved_and_loaded(shapes: Path, tmp_path: Path, name: str) -> None:
    with extract_features(shapes, "pixels", tmp_path / "pixels.h5") as cache:
        classifier, result = train_head(cache, f"sklearn:{name}", **OPTIONS[name])
        X = cache.features()
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors")
    assert np.array_equal(again.predict_features(X), classifier.predict_features(X))
    assert result.conditions["options"]["params"] == OPTIONS[name]
    assert result.parameters > 0
    content = bytearray((tmp_path / "c.safetensors").read_bytes())
    place = content.find(b"PK\x03\x04")
    content[place + 200 : place + 260] = bytes(60)
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises((ClassifierError, HeadError)):
        Classifier.load(tmp_path / "c.safetensors")


def test_the_commands_train_and_predict(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = "sklearn:neighbors.KNeighborsClassifier"
    for command in (
        ["extract", str(shapes), "--backbone", "pixels", "--out", "f.h5"],
        ["train-head", "f.h5", "--head", head, "--set", "n_neighbors=3", "--out", "knn"],
        ["predict", "knn/classifier.safetensors", str(shapes), "--json"],
    ):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
    assert Classifier.load("knn/classifier.safetensors").head.estimator_.n_neighbors == 3
    done = CliRunner().invoke(cli, ["train-head", "f.h5", "--head", "sklearn:svm.SVCC"])
    assert done.exit_code == 1
    assert "svm.SVC" in done.output
