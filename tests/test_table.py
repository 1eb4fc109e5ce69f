"""The table of images: order of classes, unique ids, columns of one length."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.errors import ImagesError
from featpipe.table import (
    UNLABELLED,
    ImageTable,
    canonical_split,
    make_table,
    sort_classes,
    text_column,
)

LABELS = st.lists(st.none() | st.text(max_size=5) | st.integers(0, 20).map(str), max_size=30)


@settings(deadline=None)
@given(LABELS)
def test_each_row_keeps_its_label(labels: list[str | None]) -> None:
    table = make_table([f"{row}.png" for row in range(len(labels))], labels)
    if table.labels is None:
        assert set(labels) <= {None}
        return
    found = [table.classes[code] if code != UNLABELLED else None for code in table.labels]
    assert found == labels
    assert table.labelled.tolist() == [label is not None for label in labels]
    assert table.class_counts() == {name: labels.count(name) for name in table.classes}


@settings(deadline=None)
@given(st.sets(st.text(max_size=4) | st.integers(-20, 20).map(str)), st.randoms())
def test_classes_do_not_depend_on_the_order_of_rows(
    names: set[str], shuffler: random.Random
) -> None:
    rows = sorted(names)
    shuffler.shuffle(rows)
    table = make_table([str(i) for i in range(len(rows))], rows)
    assert table.classes == sort_classes(names)
    assert set(table.classes) == names


def test_class_names_that_are_numbers_sort_as_numbers() -> None:
    assert sort_classes({"10", "9", "-1", "0"}) == ("-1", "0", "9", "10")
    assert sort_classes({"1", "01", "001", "2"}) == ("001", "01", "1", "2")


def test_one_name_that_is_no_number_makes_all_sort_by_code_point() -> None:
    assert sort_classes({"10", "9", "b", "B", "é"}) == ("10", "9", "B", "b", "é")


def test_an_id_that_occurs_twice_is_refused_by_name() -> None:
    with pytest.raises(ImagesError, match=r"more than once \(b\.png\)"):
        make_table(["b.png", "a.png", "b.png"])


@pytest.mark.parametrize("column", ["labels", "splits", "groups"])
def test_a_column_of_another_length_is_refused(column: str) -> None:
    with pytest.raises(ImagesError, match=f"2 {column} for 3 images"):
        ImageTable(text_column("abc"), **{column: np.zeros(2, dtype=np.int64)})


def test_labels_that_are_all_missing_are_no_labels() -> None:
    table = make_table(["a", "b"], [None, None])
    assert table.labels is None
    assert table.classes == ()
    assert table.class_counts() == {}
    assert not table.labelled.any()


def test_splits_that_are_all_empty_are_no_splits() -> None:
    assert make_table(["a", "b"], splits=["", ""]).splits is None
    assert make_table(["a", "b"], splits=["", "val"]).splits.tolist() == ["", "val"]  # type: ignore[union-attr]


def test_text_columns_keep_trailing_nuls_and_bytes() -> None:
    values = ["a\0", "", "\udcff", b"b\0"]
    assert text_column(values).tolist() == values
    assert len(text_column([])) == 0


@pytest.mark.parametrize(
    ("written", "meant"),
    [("train", "train"), (" Training ", "train"), ("VAL", "val"), ("valid", "val"),
     ("validation", "val"), ("dev", "val"), ("Test", "test"), ("holdout", None), ("", None)],
)  # fmt: skip
def test_usual_spellings_of_splits_are_known(written: str, meant: str | None) -> None:
    assert canonical_split(written) == meant
