"""The split as a file: it comes back as it was, and what is wrong with one is said."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_folds import same
from test_split import split, table_of

from featpipe.errors import SplitError
from featpipe.split import Split, load_split, save_split
from featpipe.table import ImageTable, make_table

# File names of any bytes but NUL, as Python gives them.
NAMES = st.binary(min_size=1, max_size=8).map(
    lambda name: name.replace(b"\0", b"-").decode("utf-8", "surrogateescape")
)


@st.composite
def splits(draw: st.DrawFn) -> tuple[Split, ImageTable]:
    """Any division of any table, with any number of repetitions."""
    ids = draw(st.lists(NAMES, min_size=3, max_size=25, unique=True))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    part = random.integers(0, 4, len(ids))
    part[:2] = 0
    train, val, test = (np.flatnonzero(part == number) for number in range(3))
    folds: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(draw(st.integers(0, 3))):
        number = np.arange(len(train)) % draw(st.integers(2, len(train)))
        random.shuffle(number)
        folds += [(train[number != fold], train[number == fold]) for fold in range(max(number) + 1)]
    return Split(train, val, test, "drawn", tuple(folds)), make_table(ids, ["a"] * len(ids))


def everything(table: ImageTable) -> np.ndarray:
    return np.ones(len(table), dtype=bool)


def written(folder: Path, text: str, name: str = "split.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@settings(deadline=None, max_examples=150)
@given(drawn=splits())
def test_a_split_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Split, ImageTable]
) -> None:
    made, table = drawn
    path = tmp_path_factory.getbasetemp() / "any.csv"
    save_split(made, table, path)
    assert same(load_split(path, table, everything(table)), made)


@pytest.mark.parametrize(
    "changes",
    [
        {"val": 0.2, "test": 0.2},
        {"folds": 3, "repeats": 2, "test": 0.2},
        {"leave_one_group_out": True},
        {"val": 0.0},
    ],
)
def test_a_split_file_gives_the_very_split_whatever_the_other_settings(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    table = table_of(list("ab") * 20, groups=[f"g{row // 4}" for row in range(40)])
    made = split(table, **changes)
    save_split(made, table, tmp_path / "split.csv")
    again = split(table, split=str(tmp_path / "split.csv"), seed=9, val=0.3)
    assert same(again, made)
    assert again.origin == f"from {tmp_path / 'split.csv'}"


def test_the_file_has_one_row_an_image_and_one_column_a_repetition(tmp_path: Path) -> None:
    table = table_of([*"aaabbb", "a", None])
    train, test = np.arange(4), np.array([4, 5])
    folds = [(train[2:], train[:2]), (train[:2], train[2:])]
    folds += [(train[::2], train[1::2]), (train[1::2], train[::2])]
    save_split(Split(train, test[:0], test, "", tuple(folds)), table, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes().decode().splitlines() == [
        "id,part,fold1,fold2", "0.png,train,1,2", "1.png,train,1,1", "2.png,train,2,2",
        "3.png,train,2,1", "4.png,test,,", "5.png,test,,", "6.png,,,", "7.png,,,",
    ]  # fmt: skip


def test_leaving_groups_out_is_one_column(tmp_path: Path) -> None:
    table = table_of(list("ab") * 6, groups=[f"g{row // 2}" for row in range(12)])
    save_split(split(table, leave_one_group_out=True), table, tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fold1"] for row in rows] == list("112233445566")
    assert list(rows[0]) == ["id", "part", "fold1"]


@pytest.mark.parametrize("name", ["split.txt", "split.parquet", "nowhere/split.csv"])
def test_a_split_is_written_as_csv_where_there_is_a_folder(name: str, tmp_path: Path) -> None:
    table = table_of(list("ab") * 5)
    with pytest.raises(SplitError, match=r"written as \.csv to a folder that is there"):
        save_split(split(table), table, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "folds",
    [
        [([0, 1], [2, 3])],
        [([0, 1, 2], [3]), ([0, 1], [2, 3])],
        [([0, 1], [2]), ([2, 3], [0, 1])],
        [([0, 1, 2, 3], []), ([], [0, 1, 2, 3])],
        [([0, 1], [2, 3]), ([2, 3], [0, 1]), ([0, 1], [2, 3])],
    ],
)
def test_folds_that_do_not_divide_the_training_rows_are_not_written(
    folds: list[tuple[list[int], list[int]]], tmp_path: Path
) -> None:
    made = tuple((np.array(train, int), np.array(val, int)) for train, val in folds)
    none = np.array([], int)
    with pytest.raises(SplitError, match="do not validate each training row once"):
        save_split(Split(np.arange(4), none, none, "", made), table_of("aabb"), tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.csv", "part,note,id\n Training ,x,0.png\nvalid,,1.png\nDEV,y,2.png\ntest,,3.png\n"),
        ("s.tsv", "id\tpart\n3.png\ttest\n2.png\tval\n1.png\tvalidation\n0.png\ttrain\n"),
        ("s.csv", "\ufeffid,part\r\n0.png,train\r\n1.png,val\r\n\r\n2.png,val\r\n3.png,test"),
    ],
)
def test_files_of_other_tools_are_read(name: str, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text, name)
    found = split(table_of("aaaa"), split=str(path))
    assert [found.train.tolist(), found.val.tolist(), found.test.tolist()] == [[0], [1, 2], [3]]
    assert found.folds == ()


def test_fold_numbers_of_other_tools_are_read(tmp_path: Path) -> None:
    """pandas numbers from wherever it is told, and writes whole numbers beside gaps as 1.0."""
    path = written(tmp_path, "id,part,fold\n0.png,train,0.0\n1.png,train,7.0\n2.png,test,\n")
    found = load_split(path, table_of("aaa"), np.ones(3, bool))
    assert [[a.tolist() for a in fold] for fold in found.folds] == [[[1], [0]], [[0], [1]]]


def test_more_than_nine_repetitions_stay_in_order(tmp_path: Path) -> None:
    table = table_of(list("ab") * 8)
    made = split(table, folds=2, repeats=12)
    save_split(made, table, tmp_path / "s.csv")
    assert same(load_split(tmp_path / "s.csv", table, everything(table)), made)


def test_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "id,part,fold1\n0.png,train,1\n1.png,train,2\n2.png,train,1\n3.png,train,2\n4.png,,\n"
        "5.png,test,\n6.png,test,\n",
    )
    table = table_of(["a", "a", None, "a", "a", "a", "a", "a", "a", "a"])
    usable = np.ones(10, dtype=bool)
    usable[[3, 6, 9]] = False
    found = load_split(path, table, usable)
    assert [found.train.tolist(), found.val.tolist(), found.test.tolist()] == [[0, 1], [], [5]]
    assert [[a.tolist() for a in fold] for fold in found.folds] == [[[1], [0]], [[0], [1]]]
    assert found.origin == (
        f"from {path}; 2 images that it does not name are left out; 1 images without a part are "
        "left out; 3 of its images without a label or features are left out"
    )


def test_rows_without_features_are_no_news_in_a_file_that_left_them_out(tmp_path: Path) -> None:
    table, usable = table_of(["a", "b", None] * 10), np.ones(30, dtype=bool)
    usable[0] = False
    save_split(split(table, usable), table, tmp_path / "s.csv")
    assert load_split(tmp_path / "s.csv", table, usable).origin == f"from {tmp_path / 's.csv'}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,part\n0.png,train\nx.png,train\ny.png,val\n", "2 images that are not.*4.*'x.png'"),
        ("id,part\n0.png,train\n1.png,val\n0.png,val\n", "more than once, such as '0.png'"),
        ("id,part\n0.png,train\n1.png,tset\n", "'1.png' into the part 'tset'; use train"),
        ("id,part\n0.png,val\n1.png,test\n", "no training images"),
        ("id,part\n", "no training images"),
        ("", "no column id and no column part, but: nothing"),
        ("path,split\n0.png,train\n", "no column id and no column part, but: path, split"),
        ("id,part\n0.png,train,1\n", "Row 2 .* has 3 fields"),
        ('id,part\n"0.png,train\n', "not a csv table"),
        ("id,id\n0.png,train\n", "two columns of one name"),
        ("id,part,fold1\n0.png,train,1\n1.png,train,\n", "'1.png' the fold1 ''"),
        ("id,part,fold1\n0.png,train,1\n1.png,train,b\n", "'1.png' the fold1 'b'"),
        ("id,part,fold1\n0.png,train,1\n1.png,train,1.5\n", "'1.png' the fold1 '1.5'"),
        ("id,part,fold1\n0.png,train,1\n1.png,train,-1\n", "'1.png' the fold1 '-1'"),
        ("id,part,fold1\n0.png,train,1\n1.png,val,2\n", "'2', but its part is val"),
        ("id,part,fold1\n0.png,train,1\n1.png,,2\n", "'2', but its part is empty"),
        ("id,part,fold2\n0.png,train,1\n1.png,train,1\n", "only one fold in fold2"),
    ],
)
def test_what_is_wrong_with_a_split_file_is_said(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SplitError, match=message) as raised:
        load_split(path, table_of("abab"), np.ones(4, bool))
    assert str(path) in str(raised.value)


def test_a_word_that_is_no_file_is_refused_with_the_ways_out() -> None:
    with pytest.raises(
        SplitError, match=r"no split file gvien\. split can be auto, given, random, or a file"
    ):
        split(table_of(list("ab") * 5), split="gvien")


def test_without_a_label_no_file_can_be_used(tmp_path: Path) -> None:
    path = written(tmp_path, "id,part\n0.png,train\n")
    with pytest.raises(SplitError, match="both a label and features"):
        load_split(path, table_of([None]), np.ones(1, bool))


def train_test(folder: Path, fold_columns: bool = False) -> str:
    rows = [f"{row}.png,{'train' if row < 16 else 'test'}" for row in range(20)]
    if fold_columns:
        rows = [f"{row},{i % 2 if i < 16 else ''}" for i, row in enumerate(rows)]
    text = "\n".join(["id,part" + ",fold1" * fold_columns, *rows])
    return str(written(folder, text))


def test_folds_can_be_asked_for_of_a_file_without_them(tmp_path: Path) -> None:
    found = split(table_of(list("ab") * 10), split=train_test(tmp_path), folds=4)
    assert found.test.tolist() == [16, 17, 18, 19]
    assert sorted(np.concatenate([val for _, val in found.folds])) == list(range(16))


def test_a_test_share_can_be_asked_for_of_a_file_without_one(tmp_path: Path) -> None:
    path = written(tmp_path, "id,part\n" + "".join(f"{row}.png,train\n" for row in range(20)))
    found = split(table_of(list("ab") * 10), split=str(path), test=0.2)
    assert [len(found.train), len(found.val), len(found.test)] == [16, 0, 4]


@pytest.mark.parametrize("changes", [{"folds": 3}, {"leave_one_group_out": True}])
def test_folds_are_not_made_over_those_of_the_file(changes: Any, tmp_path: Path) -> None:
    path = train_test(tmp_path, fold_columns=True)
    with pytest.raises(SplitError, match=r"has folds already.*take its fold columns away"):
        split(table_of(list("aabb") * 5), split=path, **changes)


def test_folds_of_a_file_that_leave_a_class_untrained_are_refused(tmp_path: Path) -> None:
    path = train_test(tmp_path, fold_columns=True)
    with pytest.raises(SplitError, match=r"Without fold 1.*'a'.*Change the fold columns of"):
        split(table_of(list("ab") * 10), split=path)
    assert len(split(table_of(list("aabb") * 5), split=path).folds) == 2
