"""Folds: over training rows only, every class trained on, groups whole, seeded."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold
from test_split import SEEDS, classes_of, split, table_of, tables

from featpipe.errors import SettingsError, SplitError
from featpipe.settings import SEEDS as LAST
from featpipe.settings import TrainSettings
from featpipe.split import Split, split_rows
from featpipe.table import ImageTable

NUMBERS = st.integers(2, 5)


def same(one: Split, two: Split) -> bool:
    """Whether two splits have the same rows everywhere."""
    arrays = [
        [found.train, found.val, found.test, *(rows for fold in found.folds for rows in fold)]
        for found in (one, two)
    ]
    return len(arrays[0]) == len(arrays[1]) and all(map(np.array_equal, *arrays))


def divided(table: ImageTable, strata: np.ndarray, **changes: Any) -> Split:
    return split_rows(table, TrainSettings(**changes), np.ones(len(table), bool), strata=strata)


@settings(deadline=None, max_examples=40)
@given(
    tables(10, 30), st.sampled_from([0.0, 0.2]), NUMBERS, st.integers(1, 3),
    st.sampled_from(["none", "auto"]), SEEDS,
)  # fmt: skip
def test_each_training_row_validates_once_a_repetition_and_test_rows_never(
    drawn: tuple[ImageTable, np.ndarray],
    test: float,
    folds: int,
    repeats: int,
    group: str,
    seed: int,
) -> None:
    table, usable = drawn
    asked: dict[str, Any] = {"test": test, "group": group, "folds": folds, "seed": seed}
    try:
        found = split(table, usable, repeats=repeats, **asked)
    except SplitError:
        assert group == "auto"  # groups may be too uneven, single rows never
        return
    assert not len(found.val)
    assert (len(found.test) > 0) == (test > 0)
    assert sorted([*found.train, *found.test]) == np.flatnonzero(usable & table.labelled).tolist()
    assert len(found.folds) == folds * repeats
    for train, val in found.folds:
        assert len(val)
        assert sorted([*train, *val]) == found.train.tolist()
        assert np.array_equal(train, np.sort(train))
        assert np.array_equal(val, np.sort(val))
        assert classes_of(table, train) == set(table.classes)
        if group == "auto":
            assert table.groups is not None
            assert not set(table.groups[train]) & set(table.groups[val])
    for repeat in range(repeats):
        once = [val for _, val in found.folds[repeat * folds : (repeat + 1) * folds]]
        assert sorted(np.concatenate(once)) == found.train.tolist()
    assert same(found, split(table, usable, repeats=repeats, **asked))


@settings(deadline=None, max_examples=40)
@given(tables(10, 30), NUMBERS, SEEDS)
def test_folds_without_groups_are_those_of_scikit_learn_with_a_seed_for_each_repetition(
    drawn: tuple[ImageTable, np.ndarray], folds: int, seed: int
) -> None:
    table, usable = drawn
    found = split(table, usable, group="none", folds=folds, repeats=2, seed=seed)
    assert table.labels is not None
    codes = table.labels[found.train]
    expected = [
        (found.train[train], found.train[val])
        for repeat in range(2)
        for train, val in StratifiedKFold(folds, shuffle=True, random_state=seed + repeat).split(
            codes, codes
        )
    ]
    assert same(found, Split(found.train, found.val, found.test, "", tuple(expected)))


def test_each_fold_has_its_share_of_every_class() -> None:
    table = table_of(["a"] * 50 + ["b"] * 10)
    found = split(table, folds=5)
    assert table.labels is not None
    assert [np.bincount(table.labels[val]).tolist() for _, val in found.folds] == [[10, 2]] * 5


def test_repetitions_and_seeds_give_other_folds() -> None:
    table = table_of(list("ab") * 20)
    found = [
        *split(table, folds=2, repeats=3).folds[::2],
        *split(table, folds=2, seed=9).folds[::2],
    ]
    assert len({tuple(val) for _, val in found}) == 4


def test_the_last_seed_can_be_repeated() -> None:
    assert len(split(table_of(list("ab") * 9), folds=2, repeats=4, seed=LAST).folds) == 8


def test_origin_says_how_the_folds_were_made() -> None:
    table = table_of(list("ab") * 20, groups=[f"g{row // 2}" for row in range(40)])
    origin = split(table, folds=4, repeats=2, seed=3).origin
    assert origin.startswith("random, stratified by class, groups kept together, seed 3")
    assert "4 folds 2 times, stratified by class, groups kept together, seed 3" in origin
    assert "20 folds, each without one group" in split(table, leave_one_group_out=True).origin


def test_the_share_of_validation_does_not_matter_where_there_are_folds() -> None:
    table = table_of(list("ab") * 20)
    assert same(split(table, folds=3, val=0.9, test=0.2), split(table, folds=3, val=0, test=0.2))


def test_given_validation_rows_join_train_where_there_is_a_test() -> None:
    table = table_of(list("ab") * 10, splits=["train"] * 8 + ["val"] * 8 + ["test"] * 4)
    found = split(table, folds=4)
    assert found.train.tolist() == list(range(16))
    assert found.test.tolist() == [16, 17, 18, 19]
    assert not len(found.val)
    assert sorted(np.concatenate([val for _, val in found.folds])) == list(range(16))
    assert "as given; validation joins train; 4 folds" in found.origin


def test_given_validation_rows_are_the_test_where_there_is_none() -> None:
    table = table_of(list("ab") * 10, splits=["train"] * 12 + ["val"] * 8)
    found = split(table, folds=3)
    assert found.train.tolist() == list(range(12))
    assert found.test.tolist() == list(range(12, 20))
    assert not len(found.val)
    assert "validation is the test, scored once at the end" in found.origin


def test_a_test_share_is_taken_from_train_and_validation_together() -> None:
    groups = [f"g{row // 2 % 10}" for row in range(40)]  # each in both given parts
    table = table_of(list("ab") * 20, splits=["train"] * 20 + ["val"] * 20, groups=groups)
    found = split(table, folds=3, test=0.25)
    assert sorted([*found.train, *found.test]) == list(range(40))
    assert len(found.test)
    assert table.groups is not None
    assert not set(table.groups[found.train]) & set(table.groups[found.test])


def test_a_class_with_fewer_rows_than_folds_is_refused_by_name() -> None:
    with pytest.raises(SplitError, match=r"5 images .* 'rare' has 4\. Take fewer folds"):
        split(table_of(["common"] * 20 + ["rare"] * 4), folds=5)


def test_fewer_groups_than_folds_are_refused() -> None:
    table = table_of(list("ab") * 10, groups=[f"g{row // 5}" for row in range(20)])
    with pytest.raises(SplitError, match="4 groups cannot make 5 folds"):
        split(table, folds=5)


def test_a_class_in_one_group_cannot_be_folded_and_is_named() -> None:
    groups = ["only"] * 6 + [f"g{row}" for row in range(14)]
    table = table_of(["rare"] * 6 + ["common"] * 14, groups=groups)
    with pytest.raises(SplitError, match=r"no image of 'rare' is left to train on\. Take fewer"):
        split(table, folds=2)


def test_each_group_is_left_out_once_as_scikit_learn_does() -> None:
    groups = [f"g{row * 7 % 5}" for row in range(40)]
    table = table_of(list("ab") * 20, groups=groups)
    found = split(table, leave_one_group_out=True)
    assert len(found.folds) == 5
    expected = LeaveOneGroupOut().split(groups, groups=groups)
    assert same(found, Split(np.arange(40), found.val, found.test, "", tuple(expected)))


def test_groups_named_in_ids_are_left_out_one_by_one() -> None:
    found = split(table_of(list("ab") * 20), leave_one_group_out=True, group="^([0-9])")
    assert len(found.folds) == 10
    assert Counter(len(val) for _, val in found.folds) == {11: 3, 1: 7}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "needs groups, and these images have none.*--group REGEX"),
        (["same"] * 12, "All 12 images to train on are of the group 'same'"),
        (["x", "y", ""] * 4, "4 of the 12 images to train on have no group"),
        (["x"] * 6 + ["y"] * 6, "Without the group 'x'.*no image of 'a' is left to train on"),
    ],
)
def test_groups_that_cannot_be_left_out_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        split(table_of(["a"] * 6 + ["b"] * 6, groups=groups), leave_one_group_out=True)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 12), min_size=20, max_size=50), NUMBERS,
    st.sampled_from(["none", "auto"]), SEEDS,
)  # fmt: skip
def test_strata_too_rare_for_folds_are_tolerated(
    strata: list[int], folds: int, group: str, seed: int
) -> None:
    rows = len(strata)
    table = table_of([f"c{code}" for code in strata], groups=[str(row) for row in range(rows)])
    found = divided(table, np.array(strata), test=0.2, folds=folds, group=group, seed=seed)
    assert sorted([*found.train, *found.test]) == list(range(rows))
    assert len(found.folds) == folds
    sizes = [len(val) for _, val in found.folds]
    assert min(sizes) >= 1
    assert sum(sizes) == len(found.train)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=20, max_size=60), st.floats(0.1, 0.9), SEEDS)
def test_a_share_of_rare_strata_is_about_what_was_asked_for(
    strata: list[int], share: float, seed: int
) -> None:
    table = table_of(["a", "b"] * (len(strata) // 2) + ["a"] * (len(strata) % 2))
    found = divided(table, np.array(strata), val=share, seed=seed)
    assert abs(len(found.val) - share * len(strata)) <= 1


def test_strata_take_the_place_of_the_classes() -> None:
    strata = np.repeat([7, 2, 9], 10)
    found = divided(table_of(list("ab") * 15), strata, folds=5)
    for _, val in found.folds:
        assert Counter(strata[val].tolist()) == {7: 2, 2: 2, 9: 2}


def test_too_few_images_for_the_folds_are_refused_even_with_strata() -> None:
    with pytest.raises(SplitError, match="there are 3"):
        divided(table_of(list("aab")), np.arange(3), folds=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "0, for none, or at least 2"),
        ({"folds": -1}, "at least 0"),
        ({"repeats": 0, "folds": 2}, "at least 1"),
        ({"folds": 2, "leave_one_group_out": True}, "not both"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings(**changes)
