"""Images that are there twice: planted copies are found, nothing else is, and policies hold."""

import io
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from featpipe.cache import FeatureCache
from featpipe.decode import decode
from featpipe.duplicates import MOST_BITS, MOST_COLOUR, copies_of, find_duplicates
from featpipe.errors import ImagesError
from featpipe.extract import extract_features
from featpipe.neighbours import Likeness
from featpipe.picture_hash import PictureHash
from featpipe.settings import ExtractSettings, TrainSettings
from featpipe.train import train_head


@dataclass(frozen=True)
class Planted:
    """The sample images with a copy of every other one, and what is a copy of what."""

    folder: Path
    cache: FeatureCache
    pairs: set[tuple[int, int]]
    exact: tuple[int, int]
    mirrored: set[tuple[int, int]]


@pytest.fixture(scope="module")
def planted(
    shapes: Path, small: ExtractSettings, tmp_path_factory: pytest.TempPathFactory
) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(shapes, folder / "images")
    random = np.random.default_rng(0)
    of: dict[str, tuple[str, bool]] = {}
    for number, path in enumerate(sorted(shapes.rglob("*.*"))[::2]):
        picture = decode(path.read_bytes())
        scale = random.uniform(0.7, 1.5)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        if number % 2:
            picture = ImageOps.mirror(picture)
        # Every third copy lies in another class.
        other = ("circle", "square", "triangle")[number % 3]
        name = f"{path.parent.name if number % 3 else other}/copy-{number}.jpg"
        picture.save(folder / "images" / name, quality=int(random.integers(60, 95)))
        of[name] = path.relative_to(shapes).as_posix(), bool(number % 2)
    first = sorted((shapes / "square").iterdir())[1]
    shutil.copy(first, folder / "images" / "square" / f"same{first.suffix}")
    cache = extract_features(folder / "images", "squeezenet1_1", folder / "f.h5", small)
    row = {name: number for number, name in enumerate(cache.table.ids)}

    def pair(one: str, other: str) -> tuple[int, int]:
        return (min(row[one], row[other]), max(row[one], row[other]))

    return Planted(
        folder / "images",
        cache,
        {pair(name, origin) for name, (origin, _) in of.items()},
        pair(f"square/{first.name}", f"square/same{first.suffix}"),
        {pair(name, origin) for name, (origin, mirrored) in of.items() if mirrored},
    )


def test_planted_copies_are_found_and_nothing_else(planted: Planted) -> None:
    found = find_duplicates(planted.cache)
    assert found.exact == [list(planted.exact)]
    near = {pair.rows for pair in found.near}
    assert near <= planted.pairs
    assert len(near) >= 0.8 * len(planted.pairs)
    assert found.unseen == 0
    assert found.groups == len(near) + 1
    turned = {pair.rows for pair in found.near if pair.mirrored}
    assert turned <= planted.mirrored  # but a symmetric one needs no turning
    labels = planted.cache.table.labels
    assert labels is not None
    for pair in found.pairs:
        assert pair.across == (("class",) if labels[pair.rows[0]] != labels[pair.rows[1]] else ())
        assert -1 <= pair.similarity <= 1
    assert any("class" in pair.across for pair in found.near)
    document = found.to_dict("group")
    assert set(document) == {"policy", "exact", "near", "groups"}
    assert document["near"][0]["hash_distance"] == min(pair.distance for pair in found.near)


def test_pairs_across_a_split_are_said_to_be(planted: Planted) -> None:
    found = find_duplicates(planted.cache)
    _, result = train_head(planted.cache, "logistic", TrainSettings(test=0.3))
    assert result.split is not None
    part = np.full(len(planted.cache), -1)
    for number, rows in enumerate(result.split.parts().values()):
        part[rows] = number
    for pair in found.on(planted.cache.table, result.split).pairs:
        one, other = pair.rows
        assert ("split" in pair.across) == (part[one] != part[other])


@pytest.mark.parametrize("policy", ["group", "drop", "keep"])
def test_a_head_is_trained_as_the_policy_says(
    planted: Planted, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "featpipe")
    asked = TrainSettings(test=0.25, leaks=policy, folds=3)
    _, result = train_head(planted.cache, "logistic", asked)
    split, numbers = result.split, find_duplicates(planted.cache).numbers
    assert split is not None
    train, test = set(numbers[split.train].tolist()), set(numbers[split.test].tolist())
    rows = len(split.train) + len(split.test)
    assert "show one picture" in caplog.text
    if policy == "keep":
        assert any(record.levelno == logging.WARNING for record in caplog.records)
        assert train & test
    else:
        assert not train & test
    assert rows == (len(set(numbers.tolist())) if policy == "drop" else len(planted.cache))


def test_without_pictures_only_equal_files_are_found(
    planted: Planted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = planted.folder.with_name("moved")
    planted.folder.rename(moved)
    try:
        found = find_duplicates(planted.cache)
        assert "Only exact duplicates are looked for" in caplog.text
        assert "give their place" in caplog.text
        assert [pair.rows for pair in found.pairs] == [planted.exact]
        assert found.unseen == len(planted.cache)
        assert len(find_duplicates(planted.cache, moved).pairs) > 10
    finally:
        moved.rename(planted.folder)
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    textured(0, 40, 40).save(strangers / "one.png")
    with pytest.raises(ImagesError, match=r"None of the \d+ images of"):
        find_duplicates(planted.cache, strangers)


def test_pictures_that_are_gone_or_have_changed_are_counted(
    planted: Planted, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(planted.folder, images)
    near = sorted(pair.rows for pair in find_duplicates(planted.cache).near)
    ids = planted.cache.table.ids
    (images / ids[near[0][0]]).unlink()
    (images / ids[near[1][0]]).write_bytes((images / ids[near[2][0]]).read_bytes())
    (images / ids[near[3][0]]).write_bytes(b"no picture")
    found = find_duplicates(planted.cache, images)
    assert found.unseen == 3
    left = {pair.rows for pair in found.near}
    assert left == set(near) - {near[0], near[1], near[3]}


def test_nothing_is_found_among_different_images(shapes_cache: FeatureCache) -> None:
    found = find_duplicates(shapes_cache)
    assert found.pairs == ()
    assert found.groups == 0
    assert copies_of(shapes_cache, "group") is None
    assert "0 pairs" in found.describe()


def textured(seed: int, width: int, height: int) -> Image.Image:
    """Something with structure at all scales, as photographs have."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height))
    total = np.zeros((height, width, 3))
    for size in (3, 6, 12, 24):
        noise = Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float)
    picture = Image.fromarray((total / 4).astype(np.uint8))
    return picture


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.integers(160, 300),  # of smaller, harsher copies up to 26 bits of 256 were seen to differ
    st.integers(160, 300),
    st.floats(0.6, 1.5),
    st.integers(50, 95),
    st.booleans(),
    st.sampled_from(["JPEG", "WEBP"]),
)
def test_a_hash_survives_encoding_resizing_and_mirroring(
    seed: int, width: int, height: int, scale: float, quality: int, mirror: bool, kind: str
) -> None:
    picture = textured(seed, width, height)
    copy = picture.resize((round(width * scale), round(height * scale)))
    copy = ImageOps.mirror(copy) if mirror else copy
    encoded = io.BytesIO()
    copy.save(encoded, kind, quality=quality)
    one, other = PictureHash.of(picture), PictureHash.of(decode(encoded.getvalue()))
    distance, colour, mirrored = one.compare(other)
    assert distance <= MOST_BITS
    assert colour <= MOST_COLOUR
    assert mirrored == mirror
    assert other.compare(one) == (distance, pytest.approx(colour), mirrored)
    stranger = PictureHash.of(textured(seed + 1, width, height))
    assert one.compare(stranger)[0] > 2 * MOST_BITS


def test_a_shape_in_another_colour_is_another_picture() -> None:
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    distance, colour, _ = PictureHash.of(red).compare(PictureHash.of(blue))
    assert distance <= MOST_BITS
    assert colour > MOST_COLOUR


def test_large_pictures_are_hashed_as_small_ones_are() -> None:
    large = textured(1, 1500, 1100)
    distance, _, mirrored = PictureHash.of(large).compare(PictureHash.of(large.resize((300, 220))))
    assert distance <= MOST_BITS
    assert not mirrored


def test_neighbours_are_those_of_all_pairs(shapes_cache: FeatureCache) -> None:
    rows = np.flatnonzero(shapes_cache.ok)
    likeness = Likeness(shapes_cache, None, rows)
    found = likeness.neighbours(4, -1.0)
    X = shapes_cache.features(rows=rows)
    X = X.reshape(len(X), -1) - X.reshape(len(X), -1).mean(axis=0)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    alike = X @ X.T
    np.fill_diagonal(alike, -2)
    nearest = np.argsort(-alike, axis=1)[:, :4]
    expected = {tuple(sorted((row, int(other)))) for row in range(len(X)) for other in nearest[row]}
    assert {tuple(pair) for pair in found.tolist()} == expected
    pairs = found[:20]
    np.testing.assert_allclose(likeness.cosines(pairs), alike[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    assert len(likeness.neighbours(4, 1.1)) == 0
    assert Likeness(shapes_cache, None, rows[:1]).neighbours(4, -1.0).shape == (0, 2)
