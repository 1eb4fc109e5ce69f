"""Proving a cache: what `verify` finds, and that the next extract repairs just that."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from damage import flip

from featpipe.cache import FeatureCache
from featpipe.cli import cli
from featpipe.errors import CacheDamagedError
from featpipe.extract import extract_features
from featpipe.settings import ExtractSettings
from featpipe.verification import verify

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def made(shapes: Path, small: ExtractSettings, shapes_cache: FeatureCache, tmp_path: Path) -> Path:
    """A copy of a cache beside a copy of its images, of which two have gone bad since."""
    shutil.copytree(shapes, tmp_path / "shapes")
    extract_features(tmp_path / "shapes", "pixels", tmp_path / "f.h5").close()
    return tmp_path / "f.h5"


def test_a_sound_cache_is_proved(made: Path) -> None:
    found = verify(made)
    assert found.ok
    assert (found.rows, found.images_checked, found.images_absent) == (36, 36, 0)
    assert found.sampled == 36
    assert found.largest_difference == 0
    assert found.notes == ()


def test_a_random_network_is_computed_again_too(
    shapes: Path, small: ExtractSettings, tmp_path: Path
) -> None:
    two = replace(small, layer=("features.3", "features"), pool="avg")
    extract_features(shapes, "squeezenet1_1", tmp_path / "f.h5", two).close()
    found = verify(tmp_path / "f.h5", sample=5)
    assert found.ok
    assert found.sampled == 5
    assert found.largest_difference is not None
    assert found.largest_difference < 1e-4


def test_bad_rows_are_listed_and_exactly_those_are_repaired(made: Path) -> None:
    good = made.read_bytes()
    with FeatureCache.open(made) as cache:
        reference = cache.features().tobytes()
    flip(made, 7)
    flip(made, 20)
    found = verify(made)
    assert [row.row for row in found.bad] == [7, 20]
    assert "does not match its checksum" in found.bad[0].reason
    with FeatureCache.open(made) as cache:
        with pytest.raises(CacheDamagedError, match=r"\(7, 20\)"):
            cache.features()
        with pytest.raises(CacheDamagedError, match=r"\(20\)"):
            cache.features(rows=np.array([3, 20]))
        assert cache.features(rows=np.array([3, 21])).shape == (2, 3072)
    totals: list[int] = []
    with extract_features(
        made.parent / "shapes", "pixels", made, on_progress=lambda done, total: totals.append(total)
    ) as cache:
        assert cache.features().tobytes() == reference
    assert totals[0] == 2
    assert verify(made).ok
    assert abs(len(made.read_bytes()) - len(good)) < 64  # the seconds have more or fewer digits


@pytest.mark.parametrize("column", ["ids", "labels", "classes", "reasons", "@conditions"])
def test_a_damaged_table_is_named_and_written_anew(made: Path, column: str) -> None:
    with FeatureCache.open(made) as cache:
        ids, labels = cache.table.ids.tolist(), cache.table.labels
    with h5py.File(made, "r+") as file:
        if column == "@conditions":
            file.attrs["conditions"] = np.bytes_("{}")
        elif column == "labels":
            file["labels"][3] = 2
        else:
            file[column][0] = b"circle/other.png"
    with pytest.raises(CacheDamagedError, match=f"{column} does not match"):
        FeatureCache.open(made)
    assert list(verify(made, made.parent / "shapes").table) == [column]
    totals: list[int] = []
    with extract_features(
        made.parent / "shapes", "pixels", made, on_progress=lambda done, total: totals.append(total)
    ) as cache:
        assert cache.table.ids.tolist() == ids
        np.testing.assert_array_equal(cache.table.labels, labels)
    assert totals == []
    assert verify(made).ok


@pytest.mark.parametrize("column", ["status", "digests"])
def test_rows_that_cannot_be_told_apart_are_refused(made: Path, column: str) -> None:
    with h5py.File(made, "r+") as file:
        file[column][5] = 1
    for use in (verify, FeatureCache.open):
        with pytest.raises(CacheDamagedError, match=r"--overwrite|cannot be told"):
            use(made)
    with pytest.raises(CacheDamagedError, match="--overwrite"):
        extract_features(made.parent / "shapes", "pixels", made)
    extract_features(
        made.parent / "shapes", "pixels", made, ExtractSettings(overwrite=True)
    ).close()
    assert verify(made).ok


@pytest.mark.parametrize("which", ["chunk_checksums", "row_checksums"])
def test_one_kind_of_checksum_is_enough(made: Path, which: str) -> None:
    with h5py.File(made, "r+") as file:
        file[which]["flatten"][0] ^= 1
    with FeatureCache.salvage(made) as cache:
        assert list(cache.damaged) == [f"{which}/flatten"]
        assert len(cache.inspect().rows) == 0
    flip(made, 7)
    with FeatureCache.salvage(made) as cache:
        assert 7 in cache.inspect().rows
    extract_features(made.parent / "shapes", "pixels", made).close()
    assert verify(made).ok


def test_changed_missing_and_new_images_are_told_apart(made: Path) -> None:
    circles = sorted((made.parent / "shapes" / "circle").iterdir())
    shutil.copy(circles[1], circles[0])
    circles[2].unlink()
    shutil.copy(DATA / "formats" / "rgb.png", circles[0].with_name("new.png"))
    found = verify(made)
    assert [(row.row, row.reason) for row in found.bad] == [(0, "its image has changed since")]
    assert (found.images_checked, found.images_absent, found.images_new) == (35, 1, 1)


def test_features_that_are_not_what_the_network_gives_are_found(made: Path) -> None:
    # Checksums only say that nothing changed since; a wrong row with a right checksum is
    # found by computing it again.
    other = made.with_name("other.h5")
    shutil.move(made.parent / "shapes", made.parent / "away")
    folder = made.parent / "shapes"
    shutil.copytree(made.parent / "away", folder)
    names = sorted((folder / "square").iterdir())
    shutil.copy(names[0], names[1])
    extract_features(folder, "pixels", other).close()
    with h5py.File(other) as wrong, h5py.File(made) as right:
        row = int(np.flatnonzero((wrong["digests"][:] != right["digests"][:]).any(axis=1))[0])
        digests = right["digests"][:]
    with h5py.File(other, "r+") as file:
        file["digests"][:] = digests
        proofs = json.loads(file.attrs["checksums"])
        from featpipe.checksums import digest_column

        proofs["digests"] = digest_column(digests)
        file.attrs["checksums"] = np.bytes_(json.dumps(proofs))
    found = verify(other, made.parent / "away", sample=36)
    assert [bad.row for bad in found.bad] == [row]
    assert "computed again differs" in found.bad[0].reason


def test_images_that_are_elsewhere_are_said_to_be_unchecked(made: Path) -> None:
    shutil.move(made.parent / "shapes", made.parent / "moved")
    found = verify(made)
    assert found.ok
    assert found.sampled == 0
    assert "give their place" in found.notes[0]
    assert verify(made, made.parent / "moved").sampled == 36


def test_the_images_are_found_beside_the_cache(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.parent)
    extract_features("shapes", "pixels", "g.h5").close()
    monkeypatch.chdir("/")
    assert verify(made.with_name("g.h5")).sampled == 36


def test_a_network_that_is_not_here_is_a_note(shapes: Path, tmp_path: Path) -> None:
    import torch
    from torchvision.models import squeezenet1_1

    weights = tmp_path / "w.pth"
    torch.save(squeezenet1_1().state_dict(), weights)
    settings = ExtractSettings(weights=str(weights), input_size=64)
    extract_features(shapes, "squeezenet1_1", tmp_path / "f.h5", settings).close()
    torch.save(squeezenet1_1().state_dict(), weights)  # other random weights
    found = verify(tmp_path / "f.h5")
    assert "not what made the cache" in found.notes[0]
    assert "weights digests" in found.notes[0]
    weights.unlink()
    found = verify(tmp_path / "f.h5")
    assert "no weights file" in found.notes[0]
    assert found.images_checked == 36


def test_the_command_exits_with_1_and_lists_bad_rows(made: Path) -> None:
    runner = CliRunner()
    good = runner.invoke(cli, ["verify", str(made), "--sample", "4"])
    assert good.exit_code == 0, good.output
    assert "Nothing is wrong." in good.stdout
    flip(made, 12)
    bad = runner.invoke(cli, ["verify", str(made), "--json"])
    assert bad.exit_code == 1
    document = json.loads(bad.stdout)
    assert document["bad"][0]["row"] == 12
    assert not document["ok"]
    text = runner.invoke(cli, ["verify", str(made)])
    assert text.exit_code == 1
    assert f"12 {document['bad'][0]['id']}" in text.stdout
