"""The table of images: order of classes, unique ids, columns of one length, and manifests."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from featpipe.errors import ImagesError
from featpipe.images import ImageSource, open_images
from featpipe.settings import ImageSettings
from featpipe.table import (
    UNLABELLED,
    ImageTable,
    canonical_split,
    make_table,
    sort_classes,
    text_column,
)

DATA = Path(__file__).parents[1] / "data"
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


def manifest(folder: Path, text: str | bytes, name: str = "m.csv", **named: str) -> ImageSource:
    """Open a manifest beside a.png and b.png, whose bytes are their names."""
    for image in ("a.png", "b.png"):
        (folder / image).write_bytes(image.encode())
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_images(folder / name, ImageSettings(**named))


def test_obvious_columns_of_a_manifest_are_found() -> None:
    source = open_images(DATA / "shapes.csv", ImageSettings(root=str(DATA / "shapes")))
    table = source.table
    assert table.labels is not None
    assert table.splits is not None
    assert table.groups is not None
    assert table.classes == ("circle", "square", "triangle")
    assert [table.classes[code] for code in table.labels] == [i.split("/")[0] for i in table.ids]
    counts = {split: table.splits.tolist().count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 18, "val": 6, "test": 12}
    assert set(table.groups) == {f"scene_{number:02d}" for number in range(1, 13)}
    assert "path = path, label = label, group = group, split = split" in source.note
    for row, name in enumerate(table.ids):
        assert source.read(row) == (DATA / "shapes" / name).read_bytes()


def test_columns_can_be_named(tmp_path: Path) -> None:
    text = "where,what,who\na.png,x,p\nb.png,y,q\n"
    table = manifest(
        tmp_path, text, path_column="where", label_column="what", group_column="who"
    ).table
    assert table.classes == ("x", "y")
    assert table.groups is not None
    assert table.groups.tolist() == ["p", "q"]


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [
        ("where,label\na.png,x\n", {}, "Which column .* is the path.* where, label.*--path-column"),
        ("path,label\na.png,x\n", {"label_column": "lable"}, "mean label.* Columns of .*: path, l"),
        ("path,label,class\na.png,x,y\n", {}, "is the label.* path, label, class"),
        ("path,path\na.png,x\n", {}, "two columns of one name"),
        ("path,label\na.png,x\nb.png\n", {}, "Row 3 .* has 1 fields, its header 2"),
        ("path,label\na.png,x,y\n", {}, "Row 2 .* has 3 fields, its header 2"),
        ("path,label\na.png,x\n,x\n", {}, "no path in row"),
        ("path\na.png\nb.png\na.png\n", {}, "listed more than once .a.png."),
        ("path\na.png\n./a.png\n", {}, "listed more than once .a.png."),
        ("path,split\na.png,train\nb.png,holdout\n", {}, "the split 'holdout' in split"),
        ("path\n", {}, "has no rows"),
        ("", {}, "has no rows"),
        ('path\n"a.png\n', {}, "not a csv table"),
        ("path\nä.png\n".encode("latin-1"), {}, "not a UTF-8 csv table"),
        ("path\nc.png\n", {}, r"looked for c\.png.*--root"),
    ],
)
def test_a_manifest_that_is_wrong_says_how(
    tmp_path: Path, text: str | bytes, named: dict[str, str], message: str
) -> None:
    with pytest.raises(ImagesError, match=message):
        manifest(tmp_path, text, **named)


def test_a_wrong_root_is_told_the_right_one() -> None:
    with pytest.raises(ImagesError, match=r"pass --root .*shapes\."):
        open_images(DATA / "shapes.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.tsv", b"path\tlabel\nb.png\tx, y\na.png\t\n"),
        ("m.csv", b'\xef\xbb\xbfpath,label\r\nb.png,"x, y"\r\n\r\na.png,\r\n'),
        ("m.CSV", b'File , Label\n b.png , "x, y"\na.png, \n'.replace(b', "', b',"')),
    ],
)
def test_tables_of_text_keep_the_order_of_the_file(tmp_path: Path, name: str, text: bytes) -> None:
    source = manifest(tmp_path, text, name)
    assert source.table.ids.tolist() == ["b.png", "a.png"]
    assert source.table.classes == ("x, y",)
    assert source.table.labelled.tolist() == [True, False]
    assert source.read(0) == b"b.png"


def test_parquet_numbers_and_nulls_are_labels_and_none(tmp_path: Path) -> None:
    columns = {"path": ["a.png", "b.png"], "y": pa.array([10, None])}
    parquet.write_table(pa.table(columns), tmp_path / "made.parquet")
    table = manifest(tmp_path, (tmp_path / "made.parquet").read_bytes(), "m.parquet").table
    assert table.classes == ("10",)
    assert table.labelled.tolist() == [True, False]


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="not a Parquet table"):
        manifest(tmp_path, b"PAR1 and nothing else", "m.parquet")


def test_a_path_that_no_system_allows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError):
        manifest(tmp_path, "path\n" + "a" * 5000 + ".png\n")
