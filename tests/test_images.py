"""Image sources: each row's id, label, split, group and bytes are those of one image."""

import csv
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from featpipe.decode import decode
from featpipe.errors import ImagesError, MissingExtraError
from featpipe.images import ImageSource, open_images, open_several
from featpipe.table import ImageTable

DATA = Path(__file__).parents[1] / "data"
NAMES = st.text("ab9 é中'\"\n\t,;#%=-_", min_size=1, max_size=8)
TEXTS = NAMES.map(str.strip)  # a table's cells are stripped
SPLITS = {"train": "train", "Training": "train", "valid": "val", "val": "val", "test": "test"}


def write(root: Path, *names: str) -> Path:
    """Files whose bytes are their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def manifest(path: Path, *rows: tuple[str, ...]) -> Path:
    """Write rows, the first of them the header, in the format of the suffix."""
    if path.suffix == ".parquet":
        columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
        parquet.write_table(pa.table({name: list(cells) for name, cells in columns.items()}), path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def labels(table: ImageTable) -> list[str | None]:
    if table.labels is None:
        return [None] * len(table)
    return [table.classes[code] if code >= 0 else None for code in table.labels]


def assert_bytes_match(source: ImageSource) -> None:
    found = [os.fsdecode(source.read(row)) for row in range(len(source))]
    assert found == source.table.ids.tolist()


@st.composite
def trees(draw: st.DrawFn) -> dict[str, tuple[str | None, str]]:
    """Paths below a folder, with the label and the split that each stands for."""
    split = draw(st.booleans())
    rows: dict[str, tuple[str | None, str]] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=12)):
        top = draw(st.sampled_from([None, *SPLITS])) if split else None
        label = draw(st.none() | NAMES) if top or not split else None
        deeper = draw(st.lists(NAMES, max_size=2)) if label else []
        path = "/".join([*filter(None, [top, label]), *deeper, name + ".png"])
        rows[path] = (label, SPLITS[top] if top else "")
    return rows


@settings(deadline=None, max_examples=60)
@given(trees())
def test_rows_of_a_folder_belong_to_one_image(rows: dict[str, tuple[str | None, str]]) -> None:
    with TemporaryDirectory() as name:
        source = open_images(write(Path(name), *rows))
        table = source.table
        assert table.ids.tolist() == sorted(rows, key=os.fsencode)
        assert labels(table) == [rows[name][0] for name in table.ids]
        splits = [""] * len(table) if table.splits is None else table.splits.tolist()
        assert splits == [rows[name][1] for name in table.ids]
        assert_bytes_match(source)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(TEXTS, TEXTS, st.sampled_from(["", *SPLITS]), TEXTS),
        min_size=1, max_size=12, unique_by=lambda row: row[0],
    ),
    st.sampled_from([".csv", ".tsv", ".parquet"]),
)  # fmt: skip
def test_rows_of_a_manifest_belong_to_one_image(
    rows: list[tuple[str, str, str, str]], suffix: str
) -> None:
    rows = [(f"in/{stem}.png", *rest) for stem, *rest in rows]  # type: ignore[misc]
    with TemporaryDirectory() as name:
        write(Path(name), *(path for path, *_ in rows))
        table_path = Path(name, "table" + suffix)
        source = open_images(manifest(table_path, ("path", "label", "split", "group"), *rows))
        table = source.table
        splits = [""] * len(rows) if table.splits is None else table.splits.tolist()
        assert table.groups is not None
        found = list(zip(table.ids, labels(table), splits, table.groups, strict=True))
        assert found == [(p, la or None, SPLITS.get(s, ""), g) for p, la, s, g in rows]
        assert_bytes_match(source)


def test_classes_and_ids_do_not_depend_on_creation_order(tmp_path: Path) -> None:
    names = ["10/b.png", "9/a.png", "9/B.png", "10/a b.png", "9/é.png"]
    one, two = write(tmp_path / "1", *names), write(tmp_path / "2", *reversed(names))
    first, second = open_images(one).table, open_images(two).table
    assert first.classes == second.classes == ("9", "10")
    assert first.ids.tolist() == second.ids.tolist()
    assert first.labels is not None
    assert first.labels.tolist() == [1, 1, 0, 0, 0]


def test_the_class_is_the_uppermost_folder(tmp_path: Path) -> None:
    table = open_images(write(tmp_path, "cat/2020/may/a.png", "dog/b.png")).table
    assert labels(table) == ["cat", "dog"]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_are_splits(tmp_path: Path, val: str) -> None:
    names = [f"{part}/{label}/x.png" for part in ("train", val, "test") for label in "ab"]
    table = open_images(write(tmp_path, *names)).table
    assert table.classes == ("a", "b")
    assert table.splits is not None
    found = dict(zip(table.ids, table.splits, strict=True))
    assert found[f"{val}/b/x.png"] == "val"
    assert found["train/a/x.png"] == "train"
    assert found["test/a/x.png"] == "test"


def test_a_train_folder_beside_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="no split: extra"):
        open_images(write(tmp_path, "train/a/x.png", "extra/a/x.png"))


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = open_images(write(tmp_path, "a.png", "b.JPG"))
    assert source.table.labels is None
    assert source.table.classes == ()
    assert source.note == ""


def test_images_beside_class_folders_have_no_label(tmp_path: Path) -> None:
    source = open_images(write(tmp_path, "cat/a.png", "stray.png"))
    assert labels(source.table) == ["cat", None]
    assert "1 images lie outside every class folder" in source.note


def test_hidden_files_and_other_suffixes_are_passed_over(tmp_path: Path) -> None:
    hidden = (".DS_Store", "cat/.a.png", ".cache/b.png")
    source = open_images(write(tmp_path, "cat/a.png", "cat/notes.txt", "cat/README", *hidden))
    assert source.table.ids.tolist() == ["cat/a.png"]
    assert "1 files (.txt)" in source.note
    assert "1 files (no suffix)" in source.note


@pytest.mark.parametrize(("link", "to"), [("a/up", ".."), ("a/same", "."), ("a/b/root", "../..")])
def test_links_to_a_folder_above_end(tmp_path: Path, link: str, to: str) -> None:
    write(tmp_path, "a/b/x.png")
    (tmp_path / link).symlink_to(to, target_is_directory=True)
    assert open_images(tmp_path).table.ids.tolist() == ["a/b/x.png"]


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    write(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "a/to").symlink_to("../b", target_is_directory=True)
    (tmp_path / "b/to").symlink_to("../a", target_is_directory=True)
    ids = open_images(tmp_path).table.ids.tolist()
    assert {"a/x.png", "b/y.png"} <= set(ids) <= {"a/x.png", "b/y.png", "a/to/y.png", "b/to/x.png"}


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "x.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/cat").symlink_to("../elsewhere", target_is_directory=True)
    assert open_images(tmp_path / "root").table.ids.tolist() == ["cat/x.png"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"no images in .*1 files \(\.txt\)"):
        open_images(write(tmp_path, "a.txt"))


def test_a_location_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="Nothing of that name exists"):
        open_images(tmp_path / "no.csv")


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    path = write(tmp_path, "a b.png") / "a b.png"
    source = open_images(path)
    assert source.table.ids.tolist() == [path.as_posix()]
    assert source.read(0) == b"a b.png"
    assert open_images(source) is source


def test_several_locations_keep_ids_and_bytes_apart(tmp_path: Path) -> None:
    for part in ("one", "two"):
        write(tmp_path, f"{part}/cat/x.png", f"{part}/dog/x.png")
    write(tmp_path, "x.png")
    source = open_several([f"{tmp_path}/one/", f"{tmp_path}/x.png", f"{tmp_path}/two"])
    read = [os.fsdecode(source.read(row)) for row in range(len(source))]
    assert read == ["one/cat/x.png", "one/dog/x.png", "x.png", "two/cat/x.png", "two/dog/x.png"]
    assert source.table.ids.tolist() == [f"{tmp_path}/{name}" for name in read]
    assert labels(source.table) == ["cat", "dog", None, "cat", "dog"]


def test_the_same_location_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    with pytest.raises(ImagesError, match="more than once"):
        open_several([str(tmp_path), f"{tmp_path}/"])


def test_digits_are_1797_scans_of_ten_classes() -> None:
    source = open_images("digits")
    assert len(source) == 1797
    assert source.table.classes == tuple("0123456789")
    assert labels(source.table) == [name.split("/")[0] for name in source.table.ids]
    assert source.table.class_counts()["0"] == 178
    assert {decode(source.read(row)).size for row in (0, 900, 1796)} == {(8, 8)}


def test_torchvision_data_sets_agree_between_two_opens() -> None:
    one, two = open_images("torchvision:FakeData"), open_images("torchvision:FakeData")
    assert one.table.ids.tolist() == two.table.ids.tolist()
    assert len(one) == len(set(one.table.ids)) == 1000
    assert labels(one.table) == labels(two.table)
    assert one.read(999) == two.read(999) != one.read(0)
    assert decode(one.read(0)).size == (224, 224)


def test_an_unknown_torchvision_data_set_lists_near_names() -> None:
    with pytest.raises(ImagesError, match="'NoSuch'"):
        open_images("torchvision:NoSuch")
    with pytest.raises(ImagesError, match="Did you mean CIFAR10"):
        open_images("torchvision:CIFAR-10")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "m.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"featpipe\[parquet\]"):
        open_images(tmp_path / "m.parquet")
