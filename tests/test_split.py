"""Dividing rows: nothing in two parts, no group torn, every class everywhere, seeded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.errors import SplitError
from featpipe.settings import TrainSettings
from featpipe.split import Split, split_rows
from featpipe.table import ImageTable, make_table

SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.3])
SEEDS = st.integers(0, 1000)


def table_of(labels: Sequence[str | None], **columns: Any) -> ImageTable:
    return make_table([f"{row}.png" for row in range(len(labels))], labels, **columns)


def split(table: ImageTable, usable: np.ndarray | None = None, **changes: Any) -> Split:
    usable = np.ones(len(table), dtype=bool) if usable is None else usable
    return split_rows(table, TrainSettings(**changes), usable)


def classes_of(table: ImageTable, rows: np.ndarray) -> set[str]:
    assert table.labels is not None
    return {table.classes[code] for code in table.labels[rows]}


@st.composite
def tables(draw: st.DrawFn, least: int, most: int) -> tuple[ImageTable, np.ndarray]:
    """Classes of `least` to `most` usable rows, and among them rows that must be left out."""
    counts = draw(st.lists(st.integers(least, most), min_size=1, max_size=4))
    labels: list[str | None] = [c for c, n in zip("abcd", counts, strict=False) for _ in range(n)]
    unlabelled, unusable = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    usable = np.array([True] * (len(labels) + unlabelled) + [False] * unusable)
    labels += [None] * unlabelled + ["a"] * unusable
    order = np.random.default_rng(draw(SEEDS)).permutation(len(labels))
    size = draw(st.integers(1, 3))
    groups = [f"g{number // size}" for number in np.argsort(order)]
    return table_of([labels[i] for i in order], groups=groups), usable[order]


@settings(deadline=None, max_examples=40)
@given(tables(10, 40), SHARES, SHARES, st.sampled_from(["none", "auto"]), SEEDS)
def test_each_usable_labelled_row_is_in_one_part(
    drawn: tuple[ImageTable, np.ndarray], val: float, test: float, group: str, seed: int
) -> None:
    table, usable = drawn
    found = split(table, usable, val=val, test=test, group=group, seed=seed)
    parts = [found.train, found.val, found.test]
    assert sorted(np.concatenate(parts)) == np.flatnonzero(usable & table.labelled).tolist()
    assert all(np.array_equal(part, np.sort(part)) for part in parts)
    assert len(found.train)
    assert (len(found.val) > 0) == (val > 0)
    assert (len(found.test) > 0) == (test > 0)


@settings(deadline=None, max_examples=40)
@given(tables(10, 40), SHARES, SHARES, SEEDS)
def test_no_group_is_in_two_parts(
    drawn: tuple[ImageTable, np.ndarray], val: float, test: float, seed: int
) -> None:
    table, usable = drawn
    assert table.groups is not None
    found = split(table, usable, val=val, test=test, seed=seed)
    groups = [set(table.groups[rows]) for rows in found.parts().values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert "groups kept together" in found.origin


@settings(deadline=None, max_examples=40)
@given(tables(10, 40), SHARES, SHARES, st.sampled_from(["none", "auto"]), SEEDS)
def test_the_same_seed_gives_the_same_split(
    drawn: tuple[ImageTable, np.ndarray], val: float, test: float, group: str, seed: int
) -> None:
    table, usable = drawn
    asked: dict[str, Any] = {"val": val, "test": test, "group": group, "seed": seed}
    one, two = split(table, usable, **asked), split(table, usable, **asked)
    assert all(
        np.array_equal(a, b)
        for a, b in zip((one.train, one.val, one.test), (two.train, two.val, two.test), strict=True)
    )


@settings(deadline=None)
@given(tables(2, 40), st.floats(0, 1), st.floats(0, 1), SEEDS)
def test_every_class_is_in_every_part_or_the_split_is_refused(
    drawn: tuple[ImageTable, np.ndarray], val: float, test: float, seed: int
) -> None:
    table, usable = drawn
    try:
        found = split(table, usable, val=val, test=test, group="none", seed=seed)
    except SplitError:
        return
    assert all(classes_of(table, rows) == set(table.classes) for rows in found.parts().values())


def test_other_seeds_give_other_splits() -> None:
    table = table_of(list("ab") * 50)
    found = {tuple(split(table, seed=seed).val) for seed in range(5)}
    assert len(found) == 5


def test_shares_are_of_all_rows() -> None:
    found = split(table_of(list("ab") * 50), val=0.2, test=0.3)
    assert [len(found.train), len(found.val), len(found.test)] == [50, 20, 30]


def test_a_rare_class_is_in_every_part() -> None:
    table = table_of(["common"] * 100 + ["rare"] * 2)
    found = split(table, val=0.2)
    assert classes_of(table, found.val) == classes_of(table, found.train) == {"common", "rare"}


def test_groups_that_would_leave_a_class_untrained_are_refused() -> None:
    table = table_of(list("aaaaabbbbb"), groups=["x"] * 5 + ["y"] * 5)
    with pytest.raises(SplitError):
        split(table, val=0.3)


def test_parts_without_a_share_are_empty() -> None:
    found = split(table_of(list("ab")), val=0, test=0)
    assert list(found.parts()) == ["train"]
    assert found.train.tolist() == [0, 1]


def given_split() -> ImageTable:
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2 + [""] * 2
    return table_of(list("ab") * 5, splits=splits)


@pytest.mark.parametrize("asked", ["auto", "given"])
def test_the_given_split_is_kept(asked: str) -> None:
    usable = np.ones(10, dtype=bool)
    usable[1] = False
    found = split(given_split(), usable, split=asked, val=0.3, test=0.3)
    assert found.train.tolist() == [0, 2, 3]
    assert found.val.tolist() == [4, 5]
    assert found.test.tolist() == [6, 7]
    assert "as given" in found.origin
    assert "2 images without a split" in found.origin


def test_a_given_split_can_be_overruled() -> None:
    found = split(given_split(), split="random", val=0.2)
    assert len(found.train) == 8
    assert len(found.val) == 2
    assert found.origin.startswith("random")


def test_validation_is_carved_from_train_where_none_is_given() -> None:
    table = table_of(list("ab") * 10, splits=["train"] * 16 + ["test"] * 4)
    found = split(table, val=0.25)
    assert len(found.val) == 4
    assert sorted([*found.train, *found.val]) == list(range(16))
    assert found.test.tolist() == [16, 17, 18, 19]
    assert classes_of(table, found.val) == {"a", "b"}


def test_validation_carved_from_train_tears_no_group() -> None:
    groups = [f"p{row // 2}" for row in range(20)]
    table = table_of(list("ab") * 10, splits=["train"] * 20, groups=groups)
    found = split(table, val=0.3)
    assert table.groups is not None
    assert len(found.val)
    assert not set(table.groups[found.train]) & set(table.groups[found.val])


@pytest.mark.parametrize("labels", [["a"] * 3, [None] * 3])
def test_without_a_label_or_a_usable_row_nothing_can_be_split(labels: list[str | None]) -> None:
    usable = np.full(3, labels[0] is None)
    with pytest.raises(SplitError, match="both a label and features"):
        split(table_of(labels), usable)


def test_one_image_in_a_class_is_refused_by_name() -> None:
    with pytest.raises(SplitError, match="'lonely' has 1"):
        split(table_of(["a"] * 9 + ["lonely"]))


@pytest.mark.parametrize(
    ("val", "test"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (-0.1, 0.0), (float("nan"), 0.0)]
)
def test_shares_that_leave_nothing_are_refused(val: float, test: float) -> None:
    with pytest.raises(SplitError, match="leave nothing to train on"):
        split(table_of(list("ab") * 20), val=val, test=test)


def test_two_images_of_a_class_are_too_few_for_three_parts() -> None:
    with pytest.raises(SplitError, match="has 1"):
        split(table_of(list("aabb")), val=0.25, test=0.5)


def test_a_given_split_is_refused_where_there_is_none() -> None:
    with pytest.raises(SplitError, match="no split; use --split random"):
        split(table_of(list("ab") * 10), split="given")


def test_a_given_split_without_training_images_is_refused() -> None:
    with pytest.raises(SplitError, match="no training images"):
        split(table_of(list("ab"), splits=["test", "test"]))


@pytest.mark.parametrize(
    ("group", "message"),
    [("[0-9]", "needs a group in parentheses"), ("(", "no regular expression"),
     ("(x)", "does not match 20 of 20 ids, such as '0.png'")],
)  # fmt: skip
def test_a_group_expression_that_gives_no_groups_is_refused(group: str, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        split(table_of(list("ab") * 10), group=group)


def test_rows_of_one_group_alone_cannot_be_divided() -> None:
    with pytest.raises(SplitError, match="without tearing one apart"):
        split(table_of(list("ab") * 10, groups=["same"] * 20))


def test_slides_named_in_ids_stay_on_one_side() -> None:
    ids = [
        f"{kind}/C{slide}P{slide}thinF_IMG_20150604_{picture:06d}_cell_{picture}.png"
        for kind in ("Parasitized", "Uninfected") for slide in range(12) for picture in range(5)
    ]  # fmt: skip
    table = make_table(ids, [name.split("/")[0] for name in ids])
    found = split(table, val=0.25, test=0.25, group="([^/]+)_IMG_")
    slides = [
        {ids[row].split("/")[1].split("_IMG_")[0] for row in rows}
        for rows in found.parts().values()
    ]
    assert len(slides) == 3
    assert sum(map(len, slides)) == len(set.union(*slides)) == 12
    for rows in found.parts().values():
        assert classes_of(table, rows) == {"Parasitized", "Uninfected"}


def test_test_rows_are_taken_from_train_where_the_given_split_has_none() -> None:
    ids = [str(number) for number in range(40)]
    table = make_table(ids, ["a", "b"] * 20, ["train"] * 30 + ["val"] * 10)
    split = split_rows(table, TrainSettings(test=0.2), np.ones(40, bool))
    assert {name: len(rows) for name, rows in split.parts().items()} == {
        "train": 24,
        "val": 10,
        "test": 6,
    }
    assert "test 0.2 of train" in split.origin
