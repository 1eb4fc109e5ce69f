"""Labels that are likely wrong: planted ones come first, and little else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

import featpipe.suspects as module
from featpipe.cache import FeatureCache
from featpipe.copies import Copies
from featpipe.errors import HeadError, SplitError
from featpipe.extract import extract_features
from featpipe.settings import ExtractSettings, TrainSettings
from featpipe.suspects import find_suspects, label_scores, likely_wrong, list_suspects


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    out = tmp_path_factory.mktemp("digits") / "f.h5"
    settings = ExtractSettings(input_size=8, precision="float32", decode="exact")
    cache = extract_features("digits", "pixels", out, settings)
    labels = cache.table.labels
    assert labels is not None
    labels = labels.copy()
    labels[np.arange(len(labels)) % 3 > 0] = -1  # a third is enough; others have no label
    cache.table = replace(cache.table, labels=labels)
    return cache


def flipped(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    known = np.flatnonzero(labels >= 0)
    wrong = random.choice(known, round(share * len(known)), replace=False)
    changed = labels.copy()
    changed[wrong] = (labels[wrong] + random.integers(1, 10, len(wrong))) % 10
    return changed, np.sort(wrong)


def test_planted_label_errors_come_first(digits: FeatureCache) -> None:
    labels = digits.table.labels
    assert labels is not None
    changed, wrong = flipped(labels, 0.05, seed=1)
    whole = digits.table
    digits.table = replace(whole, labels=changed)
    try:
        found = find_suspects(digits, "logistic", TrainSettings(folds=3), C=0.01)
    finally:
        digits.table = whole
    rows = [suspect.row for suspect in found]
    assert len(set(rows) & set(wrong.tolist())) >= 0.5 * len(wrong)
    assert len(rows) <= 2 * len(wrong)
    assert set(rows[:10]) <= set(wrong.tolist())
    assert all(row % 3 == 0 for row in rows)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for suspect in found:
        assert suspect.given == changed[suspect.row] != suspect.suggested
    right = [one for one in found[:20] if one.suggested == labels[one.row]]
    assert len(right) >= 15
    assert set(found[0].to_dict()) == {"row", "given", "suggested", "score"}


def test_strength_is_chosen_and_the_ranking_is_good(
    digits: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = digits.table.labels
    assert labels is not None
    changed, wrong = flipped(labels, 0.05, seed=2)
    whole, judged = digits.table, []
    original = module.list_suspects
    monkeypatch.setattr(
        module, "list_suspects", lambda *given: (judged.append(given), original(*given))[1]
    )
    digits.table = replace(whole, labels=changed)
    try:
        find_suspects(digits)
    finally:
        digits.table = whole
    ((rows, given, proba),) = judged
    assert np.array_equal(given, changed[rows])
    assert average_precision_score(np.isin(rows, wrong), label_scores(given, proba)) >= 0.8


def test_copies_are_never_in_two_folds(
    digits: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Copies.of(np.array([[0, 660], [3, 300]]), len(digits))
    seen = []
    original = module.run_sweep

    def spied(*arguments, **options):  # type: ignore[no-untyped-def]
        seen.append(arguments[7])
        return original(*arguments, **options)

    monkeypatch.setattr(module, "run_sweep", spied)
    find_suspects(digits, "logistic", TrainSettings(folds=2), copies, C=0.01)
    for train, val in seen[0].folds:
        assert not set(copies.numbers[train].tolist()) & set(copies.numbers[val].tolist())


def test_too_few_images_of_a_class_are_refused(digits: FeatureCache) -> None:
    labels = digits.table.labels
    assert labels is not None
    few = np.full(len(labels), -1)
    few[::100] = labels[::100]
    whole = digits.table
    digits.table = replace(whole, labels=few)
    try:
        with pytest.raises(SplitError, match="5 folds need 5 images"):
            find_suspects(digits)
    finally:
        digits.table = whole


PROBA = np.array(
    [[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.45, 0.55], [0.05, 0.95], [0.6, 0.4]]
)


def test_the_confident_joint_by_hand() -> None:
    """Class 0 is believed from 0.58 on (its rows' mean), class 1 from 0.75."""
    labels = np.array([0, 0, 1, 1, 0, 0, 1])
    thresholds = PROBA[labels == 0, 0].mean(), PROBA[labels == 1, 1].mean()
    assert thresholds == (pytest.approx(0.55), pytest.approx(0.7))
    rows, suggested = likely_wrong(labels, PROBA)
    # Row 4 is torn between both, and believed to be neither.
    assert rows.tolist() == [5, 6]
    assert suggested.tolist() == [1, 0]
    assert label_scores(labels, PROBA)[[5, 6]] == pytest.approx([0.95, 0.6])


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 5), st.integers(5, 60), st.integers(0, 10**6))
def test_order_and_scores_whatever_the_probabilities(classes: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    proba = random.dirichlet(np.full(classes, 0.3), rows)
    labels = random.integers(classes, size=rows)
    scores = label_scores(labels, proba)
    assert ((scores >= 0) & (scores <= 1)).all()
    given_is_best = proba.argmax(axis=1) == labels
    assert ((scores <= 0.5) == given_is_best).all()
    found = list_suspects(np.arange(rows) + 100, labels, proba)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        assert one.given == labels[one.row - 100]
        assert one.suggested != one.given
    order = random.permutation(rows)
    again = list_suspects(order + 100, labels[order], proba[order])
    assert {one.row for one in again} == {one.row for one in found}


@pytest.mark.parametrize(
    ("labels", "proba", "why"),
    [
        ([0, 1], [[1.0, 0.0]], "for 2 labels"),
        ([0, 2], [[1.0, 0.0], [0.0, 1.0]], "labels from 0 to 2 for 2 classes"),
        ([-1, 1], [[1.0, 0.0], [0.0, 1.0]], "rows without a label"),
        ([0], [[np.nan, 0.0]], "not finite"),
        ([0], [[1.0]], "one column a class"),
    ],
)
def test_what_is_refused(labels: list[int], proba: list[list[float]], why: str) -> None:
    with pytest.raises(HeadError, match=why):
        likely_wrong(np.array(labels), np.array(proba))
