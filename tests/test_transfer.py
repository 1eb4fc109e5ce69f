"""Features to and from other people's formats: what comes back, and what is refused."""

import csv
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe import transfer
from featpipe.cache import FeatureCache
from featpipe.checksums import digest_bytes
from featpipe.classifier import Classifier
from featpipe.cli import cli
from featpipe.decode import encode_png
from featpipe.errors import (
    BackboneError,
    CacheError,
    FeatpipeError,
    FeatureValueError,
    ImagesError,
    LayerError,
    MissingExtraError,
    SettingsError,
)
from featpipe.extract import extract_features
from featpipe.images import open_images
from featpipe.settings import ExtractSettings, ImageSettings, TrainSettings
from featpipe.table import ImageTable, Status, make_table
from featpipe.train import train_head
from featpipe.transfer import export_features, import_features
from featpipe.verification import verify

FORMATS = [".npy", ".parquet", ".h5ad"]
NAMES = ['cat/a, "b".png', "cat/c\nd.png", "dog/é.png", "dog/broken.png", "dog/f.png"]


def photos(folder: Path, names: list[str]) -> Path:
    """Pictures of one colour each; the one that is called broken is none."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = encode_png(np.full((8, 8, 3), 20 * number, np.uint8))
        path.write_bytes(b"nothing" if "broken" in name else picture)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"), NAMES)


@pytest.fixture(scope="module")
def cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """A cache of awkward names, with a row that has no features."""
    return extract_features(folder, "pixels", tmp_path_factory.mktemp("c") / "f.h5")


@pytest.fixture
def array() -> np.ndarray:
    return np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def table() -> ImageTable:
    return make_table(["a", "b", "c", "d"], ["x", "x", "y", None])


def equal(found: FeatureCache, expected: FeatureCache) -> bool:
    """Whether two caches say the same of the same rows, bit by bit."""
    mine, theirs = found.features(), expected.features()
    return (
        found.columns() == expected.columns()
        and found.table.classes == expected.table.classes
        and (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        and mine.tobytes() == theirs.tobytes()
    )


def invoke(*arguments: object, rc: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == rc, result.output
    return result


# ---- export ------------------------------------------------------------------------------


def test_an_array_has_the_rows_of_the_table_beside_it(cache: FeatureCache, tmp_path: Path) -> None:
    assert export_features(cache, tmp_path / "f.npy") == [tmp_path / "f.npy", tmp_path / "f.csv"]
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), cache.features())
    with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == cache.table.ids.tolist()
    assert {name: [row[name] for row in rows] for name in rows[0]} == cache.columns()


def test_the_exported_table_is_a_manifest_again(
    cache: FeatureCache, folder: Path, tmp_path: Path
) -> None:
    export_features(cache, tmp_path / "f.npy")
    again = extract_features(
        tmp_path / "f.csv",
        "pixels",
        tmp_path / "f.h5",
        image_settings=ImageSettings(root=str(folder)),
    )
    assert equal(again, cache)


def test_parquet_says_what_the_features_are(cache: FeatureCache, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export_features(cache, tmp_path / "f.parquet")
    read = parquet.read_table(tmp_path / "f.parquet")
    assert read.column_names == [*cache.columns(), "features"]
    assert read.column("id").to_pylist() == cache.table.ids.tolist()
    np.testing.assert_array_equal(
        np.array(read.column("features").to_pylist(), np.float32), cache.features()
    )
    told = {key.decode(): value.decode() for key, value in read.schema.metadata.items()}
    assert json.loads(told["featpipe.spec"]) == cache.spec.to_dict()
    assert json.loads(told["featpipe.shape"]) == list(cache.layers["flatten"])
    assert told["featpipe.layer"] == "flatten"


def test_anndata_has_features_table_and_spec(cache: FeatureCache, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    export_features(cache, tmp_path / "f.h5ad")
    read = anndata.read_h5ad(tmp_path / "f.h5ad")
    np.testing.assert_array_equal(read.X, cache.features())
    columns = {"id": read.obs_names.tolist(), **{n: read.obs[n].tolist() for n in read.obs}}
    assert columns == cache.columns()
    assert json.loads(read.uns["featpipe_spec"]) == cache.spec.to_dict()
    assert read.uns["featpipe_layer"] == "flatten"
    assert read.uns["featpipe_shape"].tolist() == list(cache.layers["flatten"])


def test_rows_without_features_are_exported_as_nan_with_their_reason(
    cache: FeatureCache, tmp_path: Path
) -> None:
    export_features(cache, tmp_path / "f.npy")
    bad = np.isnan(np.load(tmp_path / "f.npy")).all(axis=1)
    assert cache.table.ids[bad].tolist() == ["dog/broken.png"]
    with import_features(tmp_path / "f.npy", tmp_path / "f.csv", tmp_path / "f.h5", name="n") as f:
        assert f.status_counts() == {"ok": 4, "undecodable": 1}
        assert f.reasons.tolist() == cache.reasons.tolist()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_layer_of_several_is_exported_in_many_blocks(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: Path
) -> None:
    asked = ExtractSettings(
        layer=("features.3", "features.12"), weights="random", input_size=64, dtype="float16"
    )
    with extract_features(shapes, "squeezenet1_1", tmp_path / "f.h5", asked) as made:
        with pytest.raises(LayerError, match="--layer"):
            export_features(made, tmp_path / f"x{suffix}")
        layer = made.layer("features.3")
        monkeypatch.setattr(transfer, "BLOCK_BYTES", 5 * 2 * int(np.prod(made.layers[layer])))
        files = export_features(made, tmp_path / f"x{suffix}", "features.3")
        expected = made.features(layer)
        if suffix == ".h5ad":
            found = pytest.importorskip("anndata").read_h5ad(files[0]).X
            np.testing.assert_array_equal(found, expected.reshape(36, -1))
        else:
            tables = files[1] if suffix == ".npy" else None
            with import_features(files[0], tables, tmp_path / "i.h5", name="n", layer=layer) as f:
                assert f.layers == {layer: expected.shape[1:]}
                assert f.features().dtype == np.float16
                np.testing.assert_array_equal(f.features(), expected)


def test_an_export_replaces_what_is_there_as_a_whole(cache: FeatureCache, tmp_path: Path) -> None:
    for name in ("f.npy", "f.csv"):
        (tmp_path / name).write_text("something longer" * 10_000)
    export_features(cache, tmp_path / "f.npy")
    assert len(np.load(tmp_path / "f.npy")) == 5
    assert {path.name for path in tmp_path.iterdir()} == {"f.npy", "f.csv"}


@pytest.mark.parametrize("suffix", [".parquet", ".h5ad"])
def test_names_that_are_not_utf8_are_refused_where_they_cannot_be_held(
    suffix: str, array: np.ndarray, tmp_path: Path
) -> None:
    odd = make_table(["a", "b\udcff", "c", "d"], ["x\udcfe", "x\udcfe", "y", "y"])
    with (
        import_features(array, odd, tmp_path / "f.h5", name="n") as made,
        pytest.raises(CacheError, match=r"b\\udcff.*\.npy"),
    ):
        export_features(made, tmp_path / f"f{suffix}")
    assert {path.name for path in tmp_path.iterdir()} == {"f.h5"}


def test_files_named_by_any_bytes_come_back_through_an_array(tmp_path: Path) -> None:
    try:
        photos(tmp_path / "p", ["\udcff/a.png", "\udcff/b.png", "c/c.png"])
    except OSError:
        pytest.skip("this file system has no such names")
    with extract_features(tmp_path / "p", "pixels", tmp_path / "f.h5") as made:
        files = export_features(made, tmp_path / "f.npy")
        assert b"\n\xff/a.png,\xff," in files[1].read_bytes()
        with import_features(*files, tmp_path / "g.h5", name="n") as found:
            assert found.columns() == made.columns()


def test_a_table_may_have_a_name_of_any_bytes(cache: FeatureCache, tmp_path: Path) -> None:
    (tmp_path / "\udcff").mkdir()
    (file,) = export_features(cache, tmp_path / "\udcff" / "f.parquet")
    with import_features(file, None, tmp_path / "g.h5", name="n") as found:
        assert found.columns() == cache.columns()


@pytest.mark.parametrize("name", ["f.txt", "f", "f.h5"])
def test_another_suffix_is_refused_and_the_formats_named(
    name: str, cache: FeatureCache, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"\.npy, \.parquet, \.h5ad"):
        export_features(cache, tmp_path / name)


def test_an_export_needs_its_folder_and_never_replaces_the_cache(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    with import_features(array, table, tmp_path / "f.npy", name="n") as made:
        with pytest.raises(CacheError, match="There is no folder"):
            export_features(made, tmp_path / "none" / "f.npy")
        with pytest.raises(CacheError, match="the cache itself"):
            export_features(made, tmp_path / "f.npy")
        (tmp_path / "g.npy").mkdir()
        with pytest.raises(CacheError, match="a folder"):
            export_features(made, tmp_path / "g.npy")


@pytest.mark.parametrize(("suffix", "extra"), [(".parquet", "parquet"), (".h5ad", "anndata")])
def test_a_missing_package_is_named_with_its_extra(
    suffix: str, extra: str, cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pyarrow", "anndata"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"featpipe\[{extra}\]"):
        export_features(cache, tmp_path / f"f{suffix}")
    (tmp_path / "x.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"featpipe\[parquet\]"):
        import_features(tmp_path / "x.parquet", None, tmp_path / "f.h5", name="n")


# ---- there and back ----------------------------------------------------------------------

ANY = st.binary(min_size=1, max_size=6).map(
    lambda name: name.replace(b"\0", b"0").decode("utf-8", "surrogateescape")
)
UTF8 = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)


@st.composite
def caches(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[np.ndarray, ImageTable]:
    rows = draw(st.integers(1, 6))
    column = st.lists(text, min_size=rows, max_size=rows)
    ids = draw(st.lists(text, min_size=rows, max_size=rows, unique=True))
    labels = st.lists(st.none() | text, min_size=rows, max_size=rows)
    splits = st.lists(st.sampled_from(["train", "val", "test", ""]), min_size=rows, max_size=rows)
    listed = make_table(
        ids, *(draw(st.none() | values) for values in (labels, splits, column))
    )  # fmt: skip
    shape = (rows, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    width = draw(st.sampled_from([16, 32]))
    values = st.floats(width=width) | st.just(float("nan"))
    size = int(np.prod(shape))
    flat = draw(st.lists(values, min_size=size, max_size=size))
    return np.array(flat, f"float{width}").reshape(shape), listed


@settings(deadline=None, max_examples=40)
@given(made=caches(ANY))
def test_what_was_exported_to_an_array_is_imported_as_it_was(
    made: tuple[np.ndarray, ImageTable], tmp_path_factory: pytest.TempPathFactory
) -> None:
    there_and_back(*made, tmp_path_factory.mktemp("npy"), ".npy")


@settings(deadline=None, max_examples=40)
@given(made=caches(UTF8))
def test_what_was_exported_to_parquet_is_imported_as_it_was(
    made: tuple[np.ndarray, ImageTable], tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("pyarrow")
    there_and_back(*made, tmp_path_factory.mktemp("parquet"), ".parquet")


def there_and_back(array: np.ndarray, listed: ImageTable, folder: Path, suffix: str) -> None:
    with import_features(array, listed, folder / "f.h5", name="n", layer="a") as first:
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        assert (first.ok == finite).all()
        assert first.features()[finite].tobytes() == array[finite].tobytes()
        files = export_features(first, folder / f"x{suffix}")
        beside = files[1] if suffix == ".npy" else None
        with import_features(files[0], beside, folder / "g.h5", name="n", layer="a") as second:
            assert equal(second, first)
            assert second.spec == first.spec


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_status_reasons_and_digests_come_back(
    suffix: str, cache: FeatureCache, folder: Path, tmp_path: Path
) -> None:
    files = export_features(cache, tmp_path / f"x{suffix}")
    beside = files[1] if suffix == ".npy" else None
    with import_features(files[0], beside, tmp_path / "g.h5", name="n", layer="flatten") as found:
        assert equal(found, cache)
    assert verify(tmp_path / "g.h5", folder).ok


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_head_learns_the_same_from_what_was_imported(
    suffix: str, shapes_cache: FeatureCache, tmp_path: Path
) -> None:
    files = export_features(shapes_cache, tmp_path / f"x{suffix}")
    beside = files[1] if suffix == ".npy" else None
    wanted = TrainSettings(device="cpu")
    with import_features(files[0], beside, tmp_path / "g.h5", name="n") as found:
        classifier, result = train_head(found, "linear", wanted, epochs=5)
        other, expected = train_head(shapes_cache, "linear", wanted, epochs=5)
        assert result.curves == expected.curves
        np.testing.assert_array_equal(
            classifier.predict_features(found.features()),
            other.predict_features(shapes_cache.features()),
        )


# ---- import ------------------------------------------------------------------------------


def test_an_imported_cache_says_what_it_is(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    with import_features(array, table, tmp_path / "f.h5", name="clip@openai", layer="pool") as made:
        assert made.spec.backbone == "import:clip@openai"
        assert made.spec.layers == {"pool": "none"}
        assert made.spec.weights_digests == {"pool": digest_bytes(array.tobytes()).hex()}
        assert made.spec.dtype == "float32"
        assert not made.digests.any()
        assert made.conditions["imported"] == {"features": "the array", "table": "the table"}
    assert {path.name for path in tmp_path.iterdir()} == {"f.h5"}


def test_rows_with_nan_or_infinity_have_no_features(table: ImageTable, tmp_path: Path) -> None:
    array = np.array([[1, 2], [np.nan, 2], [np.inf, 2], [3, 4]], np.float16)
    with import_features(array, table, tmp_path / "f.h5", name="n") as made:
        assert made.status.tolist() == [Status.OK, Status.NOT_FINITE, Status.NOT_FINITE, Status.OK]
        assert made.reasons[1] == "features has NaN or infinity"
        assert np.isnan(made.features()[1:3]).all()


@pytest.mark.parametrize(
    ("given_as", "asked", "stored"),
    [
        ("float16", None, "float16"), (">f2", None, "float16"), ("float32", None, "float32"),
        (">f4", None, "float32"), ("float64", None, "float32"), ("int64", None, "float32"),
        ("uint8", None, "float32"), ("float64", "float16", "float16"),
        ("float16", "float32", "float32"),
    ],
)  # fmt: skip
def test_numbers_are_stored_as_what_a_cache_holds(
    given_as: str, asked: str | None, stored: str, array: np.ndarray, table: ImageTable,
    tmp_path: Path,
) -> None:  # fmt: skip
    np.save(tmp_path / "f.npy", np.asfortranarray(array.astype(given_as)))
    with import_features(
        tmp_path / "f.npy", table, tmp_path / "f.h5", name="n", dtype=asked
    ) as made:
        assert made.spec.dtype == made.features().dtype.name == stored
        np.testing.assert_array_equal(made.features(), array)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((4, 2), bool), np.ones((4, 2), complex), np.full((4, 2), "1"),
        np.full((4, 2), "1", object), np.ones((4, 2), "M8[s]"), np.ones(4), np.ones((4, 0)),
        np.ones((0, 4)), np.array(1.0),
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    with pytest.raises(FeatureValueError, match=r"the array (has the shape|holds)"):
        import_features(array, table, tmp_path / "f.h5", name="n")
    assert not list(tmp_path.iterdir())


def test_a_mask_is_not_passed_over(array: np.ndarray, table: ImageTable, tmp_path: Path) -> None:
    with pytest.raises(FeatureValueError, match="filled"):
        import_features(np.ma.masked_less(array, 3), table, tmp_path / "f.h5", name="n")


@pytest.mark.parametrize(
    ("array", "dtype", "limit"),
    [
        (np.full((4, 2), 7e4), "float16", "70000.*float16 holds.*65504"),
        (np.full((4, 2), 7e4, np.float32), "float16", "float16"),
        (np.full((4, 2), 70_000), "float16", "float16"),
        (np.full((4, 2), 1e39), None, "float32"),
    ],
)
def test_values_too_large_for_the_stored_type_are_refused(
    array: np.ndarray, dtype: str | None, limit: str, table: ImageTable, tmp_path: Path
) -> None:
    with pytest.raises(FeatureValueError, match=rf"Row 0 \(a\) reaches .*{limit}"):
        import_features(array, table, tmp_path / "f.h5", name="n", dtype=dtype)
    assert not list(tmp_path.iterdir())


class Trap:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("unpickled"),))


def test_nothing_pickled_is_ever_loaded(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("objects.npy", np.array([Trap()] * 4, object), allow_pickle=True)
    Path("pickle.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("objects.npy", "pickle.npy"):
        with pytest.raises(CacheError, match=f"{name} is not a whole .npy file"):
            import_features(name, table, "f.h5", name="n")
    assert {path.name for path in tmp_path.iterdir()} == {"objects.npy", "pickle.npy"}


def test_what_is_no_array_file_is_refused(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    np.save(tmp_path / "cut.npy", array)
    content = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-4])
    (tmp_path / "empty.npy").touch()
    with (tmp_path / "zip.npy").open("wb") as file:
        np.savez(file, array)
    for name, why in [
        ("cut.npy", "not a whole"), ("empty.npy", "is empty"), ("zip.npy", "npz archive"),
        ("none.npy", "There is no file"),
    ]:  # fmt: skip
        with pytest.raises(CacheError, match=why):
            import_features(tmp_path / name, table, tmp_path / "f.h5", name="n")
    with pytest.raises(SettingsError, match=r"\.npy and \.parquet"):
        import_features(tmp_path / "f.mat", table, tmp_path / "f.h5", name="n")


def test_other_peoples_parquet_lists_are_features(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lists = [[1.0, 2.0], [3.0, None], [5.0, 6.0]]
    held = {"file": ["a", "b", "c"], "label": ["1", None, "2"], "features": lists}
    parquet.write_table(pyarrow.table(held), tmp_path / "f.parquet", row_group_size=2)
    with import_features(tmp_path / "f.parquet", None, tmp_path / "f.h5", name="n") as made:
        assert made.table.ids.tolist() == ["a", "b", "c"]
        assert made.table.class_counts() == {"1": 1, "2": 1}
        np.testing.assert_array_equal(made.features()[made.ok], [[1, 2], [5, 6]])
        assert made.features().dtype == np.float32


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ([[1.0], [2.0, 3.0]], "2 numbers in 'features' of row 1, and 1 numbers in the first"),
        ([[1.0], None], "no list in 'features' of row 1"),
        ([None, None], "no list in 'features' of row 0"),
        ([[], []], "shape"),
        ([["1"], ["2"]], "no column 'features' of lists of numbers.*list<"),
        ([1.0, 2.0], "no column 'features' of lists of numbers"),
        (None, r"no column 'features' of lists of numbers. It has: id \(string\)"),
    ],
)
def test_parquet_without_a_list_of_numbers_in_each_row_is_refused(
    features: list[object] | None, why: str, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"id": pyarrow.array(["a", "b"])}
    if features is not None:
        kind = pyarrow.list_(pyarrow.float32()) if not any(features) else None
        columns["features"] = pyarrow.array(features, kind)
    parquet.write_table(pyarrow.table(columns), tmp_path / "f.parquet")
    with pytest.raises(CacheError, match=why):
        import_features(tmp_path / "f.parquet", None, tmp_path / "f.h5", name="n")
    (tmp_path / "g.parquet").write_bytes(b"PAR1 but nothing else")
    with pytest.raises(CacheError, match="not a Parquet file"):
        import_features(tmp_path / "g.parquet", None, tmp_path / "f.h5", name="n")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("t.csv", "id\na\nb\n", "t.csv has 2 rows, the array 4"),
        ("t.csv", "id\na\nb\nc\nc\n", "listed more than once"),
        ("t.csv", "x\n1\n2\n3\n4\n", "Which column"),
        ("t.csv", 'id\na\nb\nc\n"d\n', "not a csv table"),
        ("t.csv", "id,label\na\n", "Row 2 of"),
        ("t.csv", "", "no rows"),
        ("t.tsv", "id\ta\n\0\t\nb\t\nc\t\nd\t\n", "NUL"),
        ("t.txt", "id\na\n", "is no table"),
        ("none.csv", None, "There is no table"),
        ("t.parquet", "PAR1", "not a Parquet table"),
        ("t.csv", "id,status,reason,digest\na,fine,,\nb,,,\nc,,,\nd,,,\n", "'fine' in row 0"),
        (
            "t.csv",
            "id,status,reason,digest\na,ok,,\nb,ok,,\nc,ok,,\nd,ok,,\n",
            "digest '' in row 0",
        ),
        (
            "t.csv",
            "id,status,reason,digest\n" + "".join(f"{i},missing,gone,{'0' * 32}\n" for i in "abcd"),
            r"Row 0 \(a\) has features, and the table says missing",
        ),
    ],
)
def test_a_table_that_is_not_of_these_rows_is_refused(
    name: str, content: str | None, why: str, array: np.ndarray, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    with pytest.raises(FeatpipeError, match=why):
        import_features(array, tmp_path / name, tmp_path / "f.h5", name="n")
    assert not (tmp_path / "f.h5").exists()
    assert not (tmp_path / "f.h5.parts").exists()


def test_columns_are_chosen_as_for_any_manifest(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("who\twhat\tsubset\nb\tx\ttraining\nc\ty\tdev\nd\ty\t\na\t\t\n")
    chosen = ImageSettings(path_column="who", label_column="what")
    with import_features(
        array, tmp_path / "t.tsv", tmp_path / "f.h5", name="n", image_settings=chosen
    ) as made:
        assert made.table.ids.tolist() == ["b", "c", "d", "a"]
        assert made.table.class_counts() == {"x": 1, "y": 2}
        assert made.table.splits is not None
        assert made.table.splits.tolist() == ["train", "val", "", ""]


def test_an_edited_export_is_read_as_a_manifest_and_keeps_its_digests(
    cache: FeatureCache, tmp_path: Path
) -> None:
    files = export_features(cache, tmp_path / "f.npy")
    with files[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {"split": "training", "mood": "good", "label": f" {row['label']} "}
    with files[1].open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with import_features(*files, tmp_path / "g.h5", name="n") as found:
        assert found.table.splits is not None
        assert set(found.table.splits) == {"train"}
        assert found.table.classes == ("cat", "dog")
        np.testing.assert_array_equal(found.digests, cache.digests)
        np.testing.assert_array_equal(found.status, cache.status)


def test_what_is_there_is_replaced_only_when_asked(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    import_features(array, table, out, name="n").close()
    before = out.read_bytes()
    with pytest.raises(CacheError, match=r"f\.h5 exists.*--overwrite"):
        import_features(array, table, out, name="n")
    with pytest.raises(ImagesError, match="4 rows, the array 3"):
        import_features(array[:3], table, out, name="n", overwrite=True)
    assert out.read_bytes() == before
    with import_features(array + 1, table, out, name="n", overwrite=True) as made:
        np.testing.assert_array_equal(made.features(), array + 1)
    with pytest.raises(CacheError, match="is a folder"):
        import_features(array, table, tmp_path, name="n", overwrite=True)


def test_a_failure_while_writing_leaves_what_was_there(
    array: np.ndarray, table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    import_features(array, table, out, name="n").close()
    before = out.read_bytes()

    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "write_cache", full)
    for path, overwrite in ((out, True), (tmp_path / "new.h5", False)):
        with pytest.raises(OSError, match="No space"):
            import_features(array + 1, table, path, name="n", overwrite=overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {"f.h5"}
    assert out.read_bytes() == before


def test_an_unfinished_extraction_is_not_pushed_aside(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    out, parts = tmp_path / "f.h5", tmp_path / "f.h5.parts"
    parts.mkdir()
    (parts / "build.json").write_text("{}")
    with pytest.raises(CacheError, match="unfinished extraction"):
        import_features(array, table, out, name="n")
    assert (parts / "build.json").exists()
    import_features(array, table, out, name="n", overwrite=True).close()
    assert not parts.exists()


def test_what_is_imported_is_never_overwritten_by_the_cache(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    np.save(tmp_path / "f.npy", array)
    with pytest.raises(CacheError, match="what is to be imported"):
        import_features(tmp_path / "f.npy", table, tmp_path / "f.npy", name="n", overwrite=True)
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), array)


def test_names_that_a_cache_cannot_hold_are_refused(
    array: np.ndarray, table: ImageTable, tmp_path: Path
) -> None:
    for name, layer in (("", "a"), (" ", "a"), ("n", ""), ("n", "a/b"), ("n", ".")):
        with pytest.raises(SettingsError, match="neither is empty"):
            import_features(array, table, tmp_path / "f.h5", name=name, layer=layer)
    with pytest.raises(SettingsError, match="float32 or float16"):
        import_features(array, table, tmp_path / "f.h5", name="n", dtype="float64")
    with pytest.raises(ImagesError, match="--table"):
        import_features(array, None, tmp_path / "f.h5", name="n")


# ---- what is done with them --------------------------------------------------------------


def test_a_classifier_on_imported_features_says_that_it_cannot_see_images(
    shapes_cache: FeatureCache, shapes: Path, tmp_path: Path
) -> None:
    files = export_features(shapes_cache, tmp_path / "x.npy")
    with import_features(*files, tmp_path / "g.h5", name="clip@openai") as found:
        classifier, _ = train_head(found, "linear", TrainSettings(device="cpu"), epochs=1)
    classifier.save(tmp_path / "c.safetensors")
    loaded = Classifier.load(tmp_path / "c.safetensors")
    with pytest.raises(BackboneError, match="import:clip@openai stands for features that were"):
        next(loaded.predict(open_images(shapes)))
    said = invoke("predict", tmp_path / "c.safetensors", shapes, rc=1).stderr
    assert "import:clip@openai" in said
    assert "not known: imported" in invoke("info", tmp_path / "c.safetensors").stdout


def test_the_commands_export_import_describe_and_train(
    shapes_cache: FeatureCache, tmp_path: Path
) -> None:
    out = tmp_path / "x.npy"
    document = json.loads(invoke("export-features", shapes_cache.path, out, "--json").stdout)
    assert document["files"] == [str(out), str(tmp_path / "x.csv")]
    assert document["rows"] == 36
    assert "36 rows" in invoke("export-features", shapes_cache.path, out).stdout
    made = invoke(
        "import-features", out, "--table", tmp_path / "x.csv", "--out", tmp_path / "g.h5",
        "--name", "clip", "--json",
    )  # fmt: skip
    info = json.loads(invoke("info", tmp_path / "g.h5", "--json").stdout)
    assert info == json.loads(made.stdout)
    assert info["classes"] == {"circle": 12, "square": 12, "triangle": 12}
    assert "import:clip" in invoke("info", tmp_path / "g.h5").stdout
    again = invoke(
        "import-features", out, "--table", tmp_path / "x.csv", "--out", tmp_path / "g.h5",
        "--name", "clip", "--overwrite", "--dtype", "float16", "--label-column", "label",
    )  # fmt: skip
    assert "36 of 36 rows, features" in again.stdout
    invoke(
        "train-head", tmp_path / "g.h5", "-o", tmp_path / "head", "--epochs", 2, "--device", "cpu"
    )
