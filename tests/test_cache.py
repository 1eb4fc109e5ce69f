"""The feature cache: what is in the file, and what is refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.cache import FeatureCache
from featpipe.cache_build import CacheBuilder
from featpipe.cache_layout import open_file, read_columns, write_columns
from featpipe.cache_rows import Bytes, LayerReader, LayerWriter
from featpipe.engines import Batch, LoadedImage
from featpipe.errors import (
    CacheDamagedError,
    CacheError,
    CacheIncompleteError,
    DiskSpaceError,
    FeatureValueError,
    ImagesChangedError,
    LayerError,
    SpecMismatchError,
)
from featpipe.spec import Spec
from featpipe.table import ImageTable, Status, make_table

SPEC = Spec(
    "toy:toy", "none", 0, {"a": "d" * 32}, False, {"a": "flatten"}, {"resize": 8}, "toy", "float32",
    "float32",
)  # fmt: skip


def spec(**changes: object) -> Spec:
    return Spec.from_dict({**SPEC.to_dict(), **changes})


def digest(number: int) -> np.ndarray:
    return np.frombuffer(int(number + 1).to_bytes(16, "big"), np.uint8)


def builder(
    path: Path,
    numbers: list[int],
    of: Spec = SPEC,
    table: ImageTable | None = None,
    **options: object,
) -> CacheBuilder:
    """A build of images whose content is a number each, with features that say which."""
    digests = np.array([digest(number) for number in numbers]).reshape(-1, 16)
    table = table or make_table([f"{row}-{n}.png" for row, n in enumerate(numbers)])
    status, reasons = np.zeros(len(numbers), np.uint8), np.full(len(numbers), "", object)
    shapes = dict.fromkeys(of.layers, (3,))
    size = options.pop("batch_size", 4)
    build = CacheBuilder(path, **options)  # type: ignore[arg-type]
    try:
        build.begin(of, shapes, size)  # type: ignore[arg-type]
        build.take(table, digests, status, reasons)
    except BaseException:
        build.close()
        raise
    return build


def compute(build: CacheBuilder, most: int = 10**6) -> int:
    """Work on the pending batches; each row's features are its image's number."""
    done = 0
    for items in build.batches():
        if done >= most:
            break
        numbers = [int.from_bytes(build.work[item].tobytes(), "big") - 1 for item in items]
        rows = np.repeat(np.array(numbers, np.float32)[:, None], 3, axis=1)
        features = dict.fromkeys(build.shapes, rows)
        build.write(Batch(items, [LoadedImage(None) for _ in items], features))
        done += int(build.work[items].any(axis=1).sum())  # the others fill up the batch
    return done


def make(path: Path, numbers: list[int], **options: object) -> FeatureCache:
    build = builder(path, numbers, **options)  # type: ignore[arg-type]
    compute(build)
    return build.finish({})


def begin(path: Path, numbers: list[int], most: int = 1) -> None:
    """A build that was interrupted after some batches."""
    build = builder(path, numbers)
    compute(build, most)
    build.flush()
    build.close()


def test_three_lines_of_plain_h5py_read_it(tmp_path: Path) -> None:
    table = make_table(["x/a.png", "y/b.png", "c.png"], ["x", "y", None], ["train", "val", ""])
    make(tmp_path / "f.h5", [5, 6, 7], table=table)
    with h5py.File(tmp_path / "f.h5") as f:
        np.testing.assert_array_equal(f["features/a"][:], [[5] * 3, [6] * 3, [7] * 3])
        assert f["labels"][:].tolist() == [0, 1, -1]
        assert f["ids"].asstr()[:].tolist() == ["x/a.png", "y/b.png", "c.png"]


def test_everything_comes_back(tmp_path: Path) -> None:
    names = ["x/ü b.png", "x/'\"\n.png", "y/\udcff.png"]
    table = make_table(names, ["x", "x", "y"], ["train", "val", "test"], ["p", "p", "q"])
    with make(tmp_path / "f.h5", [1, 2, 3], table=table) as cache:
        assert cache.table.ids.tolist() == names
        assert cache.table.classes == ("x", "y")
        assert cache.table.labels is not None
        assert cache.table.labels.tolist() == [0, 0, 1]
        assert cache.table.splits is not None
        assert cache.table.splits.tolist() == ["train", "val", "test"]
        assert cache.table.groups is not None
        assert cache.table.groups.tolist() == ["p", "p", "q"]
        assert cache.spec == SPEC
        assert cache.status_counts() == {"ok": 3}
    assert not list(tmp_path.glob("*.parts"))


def test_the_same_images_need_nothing_more(tmp_path: Path) -> None:
    make(tmp_path / "f.h5", [1, 2, 3]).close()
    before = (tmp_path / "f.h5").stat()
    build = builder(tmp_path / "f.h5", [1, 2, 3])
    assert build.pending == 0
    assert list(build.batches()) == []
    build.finish({}).close()
    after = (tmp_path / "f.h5").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_moved_renamed_and_doubled_images_cost_nothing(tmp_path: Path) -> None:
    make(tmp_path / "f.h5", [1, 2, 3]).close()
    build = builder(tmp_path / "f.h5", [3, 1, 1, 2, 9])
    assert build.pending == 1
    assert compute(build) == 1
    with build.finish({}) as cache:
        assert cache.features()[:, 0].tolist() == [3, 1, 1, 2, 9]


@settings(deadline=None, max_examples=40)
@given(
    first=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    then=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    stops=st.lists(st.integers(0, 30), max_size=3),
)
def test_rows_are_right_whatever_was_interrupted_and_changed(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], then: list[int], stops: list[int]
) -> None:
    path = tmp_path_factory.mktemp("c") / "f.h5"
    for most in stops:
        build = builder(path, first)
        compute(build, most)
        build.flush()
        build.close()
    build = builder(path, then)
    compute(build)
    with build.finish({}) as cache:
        assert cache.features()[:, 0].tolist() == then
        assert cache.table.ids.tolist() == [f"{row}-{n}.png" for row, n in enumerate(then)]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("weights_digests", {"a": "e" * 32}, "weights digests a"),
        ("layers", {"a": "avg"}, "layers a: cached flatten, requested avg"),
        ("layers", {"b": "flatten"}, "layers b: cached nothing, requested flatten"),
        ("preprocessing", {"resize": 9}, "preprocessing resize: cached 8, requested 9"),
        ("decoder", "other", "decoder"),
        ("precision", "bfloat16", "precision"),
        ("dtype", "float16", "dtype: cached float32, requested float16"),
        ("backbone", "toy:other", "backbone"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_spec_is_refused_and_the_difference_named(
    tmp_path: Path, field: str, value: object, named: str, finished: bool
) -> None:
    path = tmp_path / "f.h5"
    if finished:
        make(path, [1, 2]).close()
    else:
        begin(path, [1, 2])
    with pytest.raises(SpecMismatchError, match=named) as caught:
        builder(path, [1, 2], spec(**{field: value}))
    assert "--overwrite" in str(caught.value)
    build = builder(path, [1, 2], spec(**{field: value}), overwrite=True)
    assert build.pending == 2
    build.close()


def test_the_same_weights_under_another_name_are_no_difference(tmp_path: Path) -> None:
    make(tmp_path / "f.h5", [1]).close()
    assert builder(tmp_path / "f.h5", [1], spec(weights="elsewhere.pth")).pending == 0


def test_a_second_writer_is_told_at_once(tmp_path: Path) -> None:
    build = builder(tmp_path / "f.h5", [1])
    with pytest.raises(CacheError, match="Another process"):
        builder(tmp_path / "f.h5", [1])
    build.close()
    builder(tmp_path / "f.h5", [1]).close()


def test_finishing_too_early_is_an_error_and_keeps_what_is_there(tmp_path: Path) -> None:
    build = builder(tmp_path / "f.h5", list(range(10)))
    compute(build, most=4)
    with pytest.raises(CacheIncompleteError, match="6 of 10"):
        build.finish({})
    build.close()
    assert not (tmp_path / "f.h5").exists()
    assert builder(tmp_path / "f.h5", list(range(10))).pending == 6


def test_nan_and_infinity_become_a_status_not_a_feature(tmp_path: Path) -> None:
    build = builder(tmp_path / "f.h5", [1, 2, 3])
    for items in build.batches():
        rows = np.ones((len(items), 3), np.float32)
        rows[1, 2], rows[2, 0] = np.nan, np.inf
        build.write(Batch(items, [LoadedImage(None)] * len(items), {"a": rows}))
    with build.finish({}) as cache:
        assert cache.status.tolist() == [Status.OK, Status.NOT_FINITE, Status.NOT_FINITE]
        assert "NaN or infinity" in cache.reasons[1]
        assert np.isnan(cache.features()[1:]).all()


def test_values_too_large_for_float16_stop_the_run(tmp_path: Path) -> None:
    build = builder(tmp_path / "f.h5", [70_000], spec(dtype="float16"))
    compute(build)
    with pytest.raises(FeatureValueError, match="float16 holds"):
        build.flush()
    build.close()


def test_too_little_disk_is_said_beforehand(tmp_path: Path) -> None:
    table = make_table([f"{i}.png" for i in range(1000)])
    zeros = np.zeros(1000, np.uint8)
    digests = np.array([digest(i) for i in range(1000)])
    build = CacheBuilder(tmp_path / "f.h5")
    build.begin(SPEC, {"a": (10**12,)}, 4)
    with pytest.raises(DiskSpaceError, match="--dtype float16"):
        build.take(table, digests, zeros, np.full(1000, "", object))
    build.close()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_is_no_cache_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(CacheDamagedError, match=r"f\.h5"):
        FeatureCache.open(tmp_path / "f.h5")


def test_other_hdf5_files_and_newer_formats_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CacheDamagedError, match="not featpipe's"):
        FeatureCache.open(tmp_path / "other.h5")
    make(tmp_path / "f.h5", [1]).close()
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(CacheDamagedError, match="version 99"):
        FeatureCache.open(tmp_path / "f.h5")


def test_a_missing_file_says_whether_an_extraction_lies_there(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="There is no feature cache"):
        FeatureCache.open(tmp_path / "f.h5")
    begin(tmp_path / "f.h5", [1])
    with pytest.raises(CacheError, match="run the same extract again"):
        FeatureCache.open(tmp_path / "f.h5")


@pytest.mark.parametrize("missing", ["ids", "status", "digests", "features"])
def test_a_cache_that_lacks_a_column_is_refused(tmp_path: Path, missing: str) -> None:
    make(tmp_path / "f.h5", [1, 2]).close()
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        del file[missing]
    with pytest.raises(CacheDamagedError):
        FeatureCache.open(tmp_path / "f.h5")


def test_a_flipped_byte_is_found_by_its_checksum(tmp_path: Path) -> None:
    make(tmp_path / "f.h5", list(range(64))).close()
    with h5py.File(tmp_path / "f.h5") as file:
        chunk = file["features/a"].id.get_chunk_info(0)
    content = bytearray((tmp_path / "f.h5").read_bytes())
    content[chunk.byte_offset + 17] ^= 1
    (tmp_path / "f.h5").write_bytes(content)
    with FeatureCache.open(tmp_path / "f.h5") as cache, pytest.raises(CacheDamagedError):
        cache.features()


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    build = builder(tmp_path / "f.h5", list(range(8)))
    compute(build)
    build.flush()
    build.close()
    (part,) = (tmp_path / "f.h5.parts").glob("part-*")
    part.write_bytes(part.read_bytes()[:100])
    build = builder(tmp_path / "f.h5", list(range(8)))
    assert build.pending == 8
    compute(build)
    with build.finish({}) as cache:
        assert cache.features()[:, 0].tolist() == list(range(8))


def test_several_layers_must_be_chosen_from(tmp_path: Path) -> None:
    two = spec(layers={"a": "flatten", "b.c": "flatten"})
    with make(tmp_path / "f.h5", [1, 2], of=two) as cache:
        with pytest.raises(LayerError, match=r"a, b\.c"):
            cache.features()
        assert cache.layer("b") == "b.c"
        assert cache.features("b.c").shape == (2, 3)
        with pytest.raises(LayerError, match="no layer"):
            cache.layer("z")


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(0, 199), max_size=50), count=st.integers(1, 200), wide=st.booleans()
)
def test_rows_are_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], count: int, wide: bool
) -> None:
    wanted = np.array(rows, np.int64) % count
    # 40,000 values make several chunks; three make one.
    content = np.arange(count * (40_000 if wide else 3), dtype=np.float32).reshape(count, -1)
    path = tmp_path_factory.mktemp("r") / "x.h5"
    with h5py.File(path, "w") as file:
        writer = LayerWriter(file, "x", content.shape, content.dtype)
        writer.write(content)
        writer.close()
        write_columns(file, {})
    with open_file(path) as file:
        columns, wrong = read_columns(file)
        assert not wrong
        reader = LayerReader.of(file, "x", columns, Bytes(file))
        np.testing.assert_array_equal(reader.read(wanted), content[wanted])
        np.testing.assert_array_equal(reader.read(), content)
        assert not len(reader.inspect().rows)
        assert not reader.inspect().outside


def test_blocks_cover_every_row_once(tmp_path: Path) -> None:
    with make(tmp_path / "f.h5", list(range(11))) as cache:
        blocks = list(cache.blocks(size=4))
    assert [start for start, _ in blocks] == [0, 4, 8]
    assert np.concatenate([rows for _, rows in blocks])[:, 0].tolist() == list(range(11))


def test_entirely_other_images_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "f.h5", [1, 2, 3]).close()
    with pytest.raises(ImagesChangedError, match="none of which is among these 2"):
        builder(tmp_path / "f.h5", [7, 8])
    assert not (tmp_path / "f.h5.parts").exists()
    builder(tmp_path / "f.h5", [7, 8], overwrite=True).close()
    assert len(FeatureCache.open(tmp_path / "f.h5")) == 3


def test_an_interrupted_overwrite_goes_on_with_the_same_command(tmp_path: Path) -> None:
    make(tmp_path / "f.h5", list(range(8))).close()
    new = spec(precision="bfloat16")
    build = builder(tmp_path / "f.h5", list(range(8)), new, overwrite=True)
    compute(build, most=4)
    build.flush()
    build.close()
    build = builder(tmp_path / "f.h5", list(range(8)), new, overwrite=True)
    assert build.pending == 4
    compute(build)
    with build.finish({}) as cache:
        assert cache.spec == new
        assert cache.features()[:, 0].tolist() == list(range(8))


def test_rows_that_failed_once_do_not_displace_others(tmp_path: Path) -> None:
    # Parts over the same stretch of the work list, with different rows in them.
    build = builder(tmp_path / "f.h5", [10, 11, 12], batch_size=1)
    for items in build.batches():
        rows = np.full((1, 3), 10 + items[0], np.float32)
        lost = LoadedImage(None, Status.UNREADABLE, "busy")
        image = LoadedImage(None) if items == [1] else lost
        build.write(Batch(items, [image], {"a": rows}))
    build.flush()
    build.close()
    build = builder(tmp_path / "f.h5", [10, 11, 12], batch_size=1)
    assert list(build.batches()) == [[0], [2]]
    compute(build)
    with build.finish({}) as cache:
        assert cache.features()[:, 0].tolist() == [10, 11, 12]


def test_a_full_disk_is_an_error_and_what_was_saved_stays(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    build = builder(tmp_path / "f.h5", list(range(600)))
    compute(build, most=256)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            compute(build)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    build.close()
    assert builder(tmp_path / "f.h5", list(range(600))).pending == 600 - 256
