"""Small pictures by row: made once, made again where they must be, never made up."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from featpipe.cache import FeatureCache
from featpipe.errors import ImagesError
from featpipe.thumbnails import save_thumbnails, thumbnail


def test_each_row_has_its_picture(shapes_cache: FeatureCache, shapes: Path, tmp_path: Path) -> None:
    done = []
    found = save_thumbnails(
        shapes_cache, tmp_path / "t", size=40, on_progress=lambda *at: done.append(at)
    )
    assert found.missing == ()
    assert done[-1] == (36, 36)
    names = {path.name for path in (tmp_path / "t").iterdir()}
    assert names == {*(f"{row:06d}.webp" for row in range(36)), "thumbnails.json"}
    for row in (0, 17, 35):
        content = found.read(row)
        assert content is not None
        with Image.open(io.BytesIO(content)) as small:
            assert small.format == "WEBP"
            assert max(small.size) == 40
            with Image.open(shapes / shapes_cache.table.ids[row]) as original:
                assert small.width / small.height == pytest.approx(
                    original.width / original.height, rel=0.1
                )


def test_a_second_run_makes_what_is_missing(shapes_cache: FeatureCache, tmp_path: Path) -> None:
    found = save_thumbnails(shapes_cache, tmp_path, rows=[3, 4, 5])
    os.utime(found.path(3), (1, 1))
    found.path(4).write_bytes(b"")  # as a power cut may leave it
    found.path(5).unlink()
    again = save_thumbnails(shapes_cache, tmp_path, rows=[3, 4, 5, 6])
    assert found.path(3).stat().st_mtime == 1
    assert all(again.read(row) for row in (3, 4, 5, 6))
    assert again.read(7) is None


def test_those_of_other_images_are_made_anew(shapes_cache: FeatureCache, tmp_path: Path) -> None:
    save_thumbnails(shapes_cache, tmp_path, rows=[0, 1, 2])
    (tmp_path / "notes.webp").write_text("mine")
    about = json.loads((tmp_path / "thumbnails.json").read_text())
    (tmp_path / "thumbnails.json").write_text(json.dumps({**about, "images": "others"}))
    found = save_thumbnails(shapes_cache, tmp_path, rows=[0])
    assert found.read(0)
    assert found.read(1) is None
    assert (tmp_path / "notes.webp").read_text() == "mine"
    assert save_thumbnails(shapes_cache, tmp_path, rows=[0], size=20).read(0) != found


def test_images_that_are_gone_have_none(
    shapes_cache: FeatureCache, shapes: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(shapes, images)
    ids = shapes_cache.table.ids
    (images / ids[2]).unlink()
    (images / ids[3]).write_bytes((images / ids[4]).read_bytes())  # another picture by now
    found = save_thumbnails(shapes_cache, tmp_path / "t", rows=[1, 2, 3], images=images)
    assert found.missing == (2, 3)
    assert found.read(1)
    assert found.read(2) is None
    with pytest.raises(ImagesError, match="None of the 36 images of"):
        save_thumbnails(shapes_cache, tmp_path / "t", images=images / "circle")


def test_a_small_picture_is_not_enlarged() -> None:
    with Image.open(io.BytesIO(thumbnail(Image.new("RGB", (30, 10)), 100))) as small:
        assert small.size == (30, 10)
