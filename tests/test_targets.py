"""What is to be predicted: classes as they are, and sets of labels divided at a separator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import SplitError
from featpipe.table import make_table
from featpipe.targets import Targets, targets_of

LABELS = ["cat", "dog", "eel", "fox"]


def divided(*names: str | None) -> Targets:
    """Targets of images with these labels."""
    ids = [f"{row}.png" for row in range(len(names))]
    return targets_of(make_table(ids, names), "|")


def test_without_a_separator_targets_are_the_classes_of_the_table() -> None:
    table = make_table(["a", "b", "c", "d"], ["dog|cat", None, "cat", "dog|cat"])
    targets = targets_of(table)
    assert targets.classes == ("cat", "dog|cat")
    assert targets.values.tolist() == [1, -1, 0, 1]
    assert not targets.multilabel
    assert targets.strata is None


def test_a_separator_divides_labels_and_an_image_may_have_none() -> None:
    targets = divided("cat|dog", "dog", "|", "dog|cat", None)
    assert targets.classes == ("cat", "dog")
    assert targets.values.dtype == np.float32
    assert targets.values.tolist() == [[1, 1], [0, 1], [0, 0], [1, 1], [0, 0]]
    assert targets.multilabel


def test_spaces_around_labels_empty_ones_and_repetitions_do_not_count() -> None:
    targets = divided(" cat | dog ", "dog|dog|", "|cat")
    assert targets.classes == ("cat", "dog")
    assert targets.values.tolist() == [[1, 1], [0, 1], [1, 0]]


def test_labels_that_are_numbers_are_sorted_as_numbers() -> None:
    assert divided("10|9", "2").classes == ("2", "9", "10")


@given(st.lists(st.sets(st.sampled_from(LABELS)), min_size=1, max_size=20))
def test_every_image_has_the_labels_that_were_joined_and_equal_sets_are_one_stratum(
    sets: list[set[str]],
) -> None:
    sets = [*sets, {"cat"}, {"dog"}]
    targets = divided(*("|".join(sorted(labels, reverse=True)) or "|" for labels in sets))
    assert list(targets.classes) == sorted(set().union(*sets))
    for row, labels in zip(targets.values, sets, strict=True):
        assert {targets.classes[place] for place in np.flatnonzero(row)} == labels
    assert targets.strata is not None
    for one, first in zip(targets.strata, sets, strict=True):
        for other, second in zip(targets.strata, sets, strict=True):
            assert (one == other) == (first == second)


@pytest.mark.parametrize(
    ("names", "count"), [(("cat", "cat"), 1), (("|", "|"), 0), (("cat|cat", "|"), 1)]
)
def test_fewer_than_two_labels_are_refused_with_the_way_out(
    names: tuple[str, ...], count: int
) -> None:
    with pytest.raises(SplitError, match=f"hold {count} label.*Leave the separator out"):
        divided(*names)


@pytest.mark.parametrize("separator", [None, "|"])
def test_a_table_without_labels_is_refused(separator: str | None) -> None:
    with pytest.raises(SplitError, match="None of the images has a label"):
        targets_of(make_table(["a", "b"]), separator)


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(SplitError, match="separator"):
        targets_of(make_table(["a", "b"], ["x", "y"]), "")
