"""Label budgets: which images are drawn, what they are scored on, and how sure that is."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.preprocessing import StandardScaler
from test_sweep import clouds, made

from featpipe import budget
from featpipe.budget import BudgetCurve, budget_curve
from featpipe.cache import FeatureCache
from featpipe.crossfit import SharedRows
from featpipe.errors import SplitError
from featpipe.head import Head
from featpipe.heads import make_head
from featpipe.settings import TrainSettings
from featpipe.split import Split
from featpipe.targets import Targets, targets_of
from featpipe.tasks import Outcome, Task

NONE = np.arange(0)
SETTINGS = TrainSettings(repeats=4, seed=3, device="cpu")


def split_of(train: Any, val: Any, test: Any) -> Split:
    return Split(*(np.sort(np.asarray(rows, dtype=np.int64)) for rows in (train, val, test)), "")


@pytest.fixture(scope="module")
def blurred(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """150 rows of three classes that overlap."""
    features, names = clouds(150, spread=1.5)
    return made(tmp_path_factory.mktemp("budget") / "f.h5", {"only": features}, names)


SPLIT = split_of(range(70), range(70, 90), range(90, 150))


def curve_of(
    cache: FeatureCache,
    budgets: Sequence[int | None],
    settings: TrainSettings = SETTINGS,
    split: Split = SPLIT,
    head: str = "knn",
    **options: Any,
) -> BudgetCurve:
    targets = targets_of(cache.table)
    return budget_curve(cache, "only", head, settings, options, budgets, targets, split)


class _Recorded(SharedRows):
    """Rows that are not fitted on: every task is remembered, and every guess is right."""

    seen: tuple[list[Task], np.ndarray] = ([], NONE)

    def __init__(
        self,
        cache: Any,
        layer: str,
        rows: np.ndarray,
        pool: np.ndarray,
        targets: Targets,
        *others: Any,
    ) -> None:
        self._values, self._given = targets.values, pool

    def run(self, heads: Sequence[Head], tasks: Sequence[Task]) -> Iterator[Outcome]:
        type(self).seen = list(tasks), self._given
        for place, task in enumerate(tasks):
            yield Outcome(0, place, np.eye(9)[self._values[task.scored]], 0.0)


def drawn(
    values: np.ndarray, budgets: Sequence[int | None], settings: TrainSettings, split: Split
) -> tuple[dict[int, list[np.ndarray]], BudgetCurve]:
    """The rows that each repeat of each budget draws."""
    targets = Targets(values, tuple("abcdefghi"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "SharedRows", _Recorded)
        curve = budget_curve(
            None, "only", "knn", settings, {}, budgets, targets, split,  # type: ignore[arg-type]
        )  # fmt: skip
    tasks, pool = _Recorded.seen
    expected = split.train if not len(split.test) else np.union1d(split.train, split.val)
    assert pool.tolist() == expected.tolist()  # what features are standardised by
    scored = split.parts()[curve.scored_on]
    found: dict[int, list[np.ndarray]] = {point.budget: [] for point in curve.points}
    sizes = [(p.budget, len(p.accuracies)) for p in curve.points]
    for task in tasks:
        assert task.scored.tolist() == scored.tolist()
        assert not len(task.select)
        counts = np.bincount(values[task.train])
        size = int(counts.max())
        found[size].append(task.train)
    assert [(size, len(rows)) for size, rows in found.items()] == sizes
    return found, curve


@hypothesis_settings(deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    st.lists(st.one_of(st.none(), st.integers(1, 15)), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(0, 1000),
    st.booleans(),
)
def test_samples_are_nested_hold_so_many_of_each_class_and_no_scored_row(
    counts: list[int], budgets: list[int | None], repeats: int, seed: int, tested: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.repeat(np.arange(len(counts)), np.array(counts) + 2))
    kinds = np.zeros(len(values), int)  # 0 train, 1 val, 2 test: one of each class at least
    for code in range(len(counts)):
        kinds[rng.permutation(np.flatnonzero(values == code))[:2]] = (1, 2)
    parts = [np.flatnonzero(kinds == kind) for kind in range(3)]
    split = split_of(*parts) if tested else split_of(*parts[:2], NONE)
    settings = TrainSettings(repeats=repeats, seed=seed, device="cpu")
    found, curve = drawn(values, budgets, settings, split)
    pool = np.union1d(parts[0], parts[1]) if tested else parts[0]
    there = np.bincount(values[pool])
    most = int(there.max())
    assert list(found) == sorted({most if size is None else min(size, most) for size in budgets})
    assert curve.scored_on == ("test" if tested else "val")
    for point in curve.points:
        samples = found[point.budget]
        # All of the images are the same images in every repeat.
        assert len(samples) == (1 if point.budget == most else repeats)
        for rows in samples:
            assert rows.tolist() == sorted(set(rows.tolist()))
            assert np.isin(rows, pool).all()
            assert np.bincount(values[rows]).tolist() == there.clip(max=point.budget).tolist()
            assert point.images == len(rows)
    for smaller, larger in pairwise(found):
        for repeat, rows in enumerate(found[smaller]):
            within = found[larger][min(repeat, len(found[larger]) - 1)]
            assert np.isin(rows, within).all()
    again, _ = drawn(values, budgets, settings, split)
    assert [[rows.tolist() for rows in one] for one in again.values()] == [
        [rows.tolist() for rows in one] for one in found.values()
    ]


def test_another_seed_and_another_repeat_draw_other_images() -> None:
    values = np.arange(200) % 2
    split = split_of(range(100), range(100, 150), range(150, 200))
    samples = {
        tuple(rows.tolist())
        for seed in (0, 1, 2)
        for rows in drawn(values, [5], TrainSettings(repeats=3, seed=seed), split)[0][5]
    }
    assert len(samples) == 9


@pytest.mark.parametrize("head", ["logistic", "lda", "knn"])
def test_accuracies_are_those_of_a_head_fitted_on_the_drawn_images_by_hand(
    blurred: FeatureCache, head: str
) -> None:
    labels = blurred.table.labels
    assert labels is not None
    curve = curve_of(blurred, [2, 6, None], head=head)
    samples, _ = drawn(labels, [2, 6, None], SETTINGS, SPLIT)
    raw, pool = blurred.features("only"), np.arange(90)
    standard = StandardScaler().fit(raw[pool]).transform(raw).astype(np.float32)
    for point in curve.points:
        for rows, accuracy in zip(samples[point.budget], point.accuracies, strict=True):
            fitted = make_head(head)
            X = standard if fitted.get_params()["standardize"] else raw
            fitted.set_params(standardize=False).fit(X[rows], labels[rows])
            right = fitted.predict(X[SPLIT.test]) == labels[SPLIT.test]
            assert accuracy == pytest.approx(right.mean())


def test_accuracy_grows_and_intervals_hold_their_means(blurred: FeatureCache) -> None:
    curve = curve_of(blurred, [None, 1, 10], head="logistic")
    assert [point.budget for point in curve.points] == [1, 10, 30]
    means = []
    for point in curve.points:
        mean, low, high = point.accuracy
        assert mean == pytest.approx(np.mean(point.accuracies))
        assert mean is not None
        assert low is not None
        assert high is not None
        assert 0 <= low < mean < high <= 1
        means.append(mean)
    assert means == sorted(means)
    assert curve.scored == 60
    document = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert [point["mean"] for point in document["points"]] == means


def test_the_interval_of_one_repeat_is_that_of_a_share_of_the_scored_images(
    blurred: FeatureCache,
) -> None:
    (point,) = curve_of(blurred, [None]).points
    mean, low, high = point.accuracy
    assert mean is not None
    expected = binom.ppf([0.025, 0.975], 60, mean) / 60
    assert [low, high] == pytest.approx(expected, abs=1.5 / 60)


def test_repeats_that_differ_widen_the_interval() -> None:
    same = np.tile(np.arange(100) < 50, (6, 1))
    differing = np.repeat(np.arange(6) % 2 == 0, 100).reshape(6, 100)
    for right in (same, differing):
        assert right.mean() == 0.5
    narrow, wide = (budget._interval(right, 0) for right in (same, differing))
    assert narrow.low is not None
    assert wide.low is not None
    assert wide.low < narrow.low < 0.5


def test_labels_of_scored_rows_are_used_for_nothing_but_scoring(tmp_path: Path) -> None:
    # Two classes: where every scored row has the other label, every hit becomes a miss.
    features, names = clouds(150, spread=2.5, classes=2)
    turned = [*names[:90], *("ant" if name == "bee" else "bee" for name in names[90:])]
    one, two = (
        curve_of(made(tmp_path / f"{i}.h5", {"only": features}, some), [2, 9], head="logistic")
        for i, some in enumerate((names, turned))
    )
    for first, second in zip(one.points, two.points, strict=True):
        assert np.array(first.accuracies) == pytest.approx(1 - np.array(second.accuracies))
        assert 0.55 < np.mean(first.accuracies) < 1


def test_images_that_are_not_drawn_change_nothing(tmp_path: Path) -> None:
    features, names = clouds(150, spread=1.5)
    samples, _ = drawn(np.arange(150) % 3, [2, 5], SETTINGS, SPLIT)
    used = np.concatenate([rows for some in samples.values() for rows in some])
    others = np.setdiff1d(np.arange(90), used)
    assert len(others) > 10
    changed = features.copy()
    changed[others] = np.random.default_rng(1).normal(size=(len(others), features.shape[1]))
    one, two = (
        curve_of(made(tmp_path / f"{i}.h5", {"only": some}, names), [2, 5])
        for i, some in enumerate((features, changed))
    )
    assert one.to_dict() == two.to_dict()


def test_a_head_with_epochs_runs_all_of_them(
    blurred: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []
    run = SharedRows.run

    def watched(self: SharedRows, heads: Any, tasks: Any) -> Iterator[Outcome]:
        for outcome in run(self, heads, tasks):
            epochs.append(outcome.epochs)
            yield outcome

    monkeypatch.setattr(SharedRows, "run", watched)
    curve_of(blurred, [2, None], head="linear", epochs=7, patience=1)
    assert epochs == [7] * 5


def test_several_labels_an_image_have_no_budget_a_class(blurred: FeatureCache) -> None:
    targets = Targets(np.eye(3, dtype=np.float32)[np.arange(150) % 3], ("a", "b", "c"))
    with pytest.raises(SplitError, match="leave the separator out"):
        budget_curve(blurred, "only", "linear", SETTINGS, {}, [1], targets, SPLIT)


def test_a_budget_needs_rows_to_be_scored_on(blurred: FeatureCache) -> None:
    with pytest.raises(SplitError, match="scored on test or validation rows: give --test"):
        curve_of(blurred, [1], split=split_of(range(150), NONE, NONE))


@pytest.mark.parametrize("budgets", [[0, 5], [-1], []])
def test_a_budget_is_at_least_one_image(blurred: FeatureCache, budgets: list[int]) -> None:
    with pytest.raises(SplitError, match="at least 1 image a class"):
        curve_of(blurred, budgets)


def test_fits_that_diverge_are_an_error(blurred: FeatureCache) -> None:
    with pytest.raises(SplitError, match=r"fits failed: diverged.*learning rate"):
        curve_of(blurred, [2], head="linear", lr=1e38, optimizer="sgd", epochs=3)
